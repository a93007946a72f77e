// The model: parameters, forward passes, recorded passes, generation.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/model_state.h"
#include "binding/values.h"

namespace qn {

// { H, L, Q, KV, D, F, V, ropeBase, eps, tied }
ModelConfig config_of(const Napi::Value& value);

class NativeModel : public Napi::ObjectWrap<NativeModel> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e006};
  static constexpr const char* kName = "Model";
  static Napi::Function define(Napi::Env env);
  // (device, config, 'w4a16' | 'w4a4')
  explicit NativeModel(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

  // The state for a job, or Error(kDisposed).
  std::shared_ptr<ModelState> alive() const;

 private:
  // native_model.cpp: the object itself
  Napi::Value JsParameterCount(const Napi::CallbackInfo& info);
  Napi::Value JsBytes(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);
  // native_model_parameters.cpp
  Napi::Value JsLoad(const Napi::CallbackInfo& info);
  Napi::Value JsInitialize(const Napi::CallbackInfo& info);
  Napi::Value JsDescribe(const Napi::CallbackInfo& info);
  Napi::Value JsReadBytes(const Napi::CallbackInfo& info);
  Napi::Value JsReadValues(const Napi::CallbackInfo& info);
  Napi::Value JsWriteValues(const Napi::CallbackInfo& info);
  Napi::Value JsFoldResidual(const Napi::CallbackInfo& info);
  Napi::Value JsReadGradient(const Napi::CallbackInfo& info);
  Napi::Value JsZeroGradients(const Napi::CallbackInfo& info);
  // native_model_forward.cpp
  Napi::Value JsForward(const Napi::CallbackInfo& info);
  Napi::Value JsForwardCached(const Napi::CallbackInfo& info);
  Napi::Value JsRecord(const Napi::CallbackInfo& info);
  Napi::Value JsLoss(const Napi::CallbackInfo& info);
  Napi::Value JsHiddenLoss(const Napi::CallbackInfo& info);
  Napi::Value JsGenerate(const Napi::CallbackInfo& info);

  JobOrder order(const Napi::CallbackInfo& info, size_t cancel_index) const;

  std::shared_ptr<ModelState> state_;
};

}  // namespace qn
