// A recorded forward pass: the native side of a Loss and of forward({ gradient: true }).
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/external_memory.h"
#include "binding/model_state.h"
#include "binding/values.h"
#include "train/tape.h"

namespace qn {

class NativeTape : public Napi::ObjectWrap<NativeTape> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e005};
  static constexpr const char* kName = "Tape";
  static Napi::Function define(Napi::Env env);
  explicit NativeTape(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override { external_.set(env, 0); }

  static Napi::Value wrap(Napi::Env env, std::shared_ptr<ModelState> model, std::shared_ptr<Tape> tape);

 private:
  Napi::Value JsBackward(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);

  std::shared_ptr<ModelState> model_;  // after the tape goes the model, whose ledger it is charged to
  std::shared_ptr<Tape> tape_;         // null once used or disposed
  bool disposed_ = false;
  ExternalMemory external_;
};

}  // namespace qn
