// PackedAdamW. Its state is made by its first job, so constructing one never blocks.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/model_state.h"
#include "binding/values.h"
#include "train/packed_adamw.h"

namespace qn {

WeightMode weight_mode_of(const std::string& name);
MomentFormat moment_format_of(const std::string& name);

class NativeOptimizer : public Napi::ObjectWrap<NativeOptimizer> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e007};
  static constexpr const char* kName = "Optimizer";
  static Napi::Function define(Napi::Env env);
  // (model, options)
  explicit NativeOptimizer(const Napi::CallbackInfo& info);

 private:
  struct State {
    std::shared_ptr<ModelState> model;       // outlives the optimizer
    std::unique_ptr<PackedAdamW> optimizer;  // lane only; null before create()
  };

  Napi::Value JsCreate(const Napi::CallbackInfo& info);
  Napi::Value JsStep(const Napi::CallbackInfo& info);
  Napi::Value JsTrainStep(const Napi::CallbackInfo& info);
  Napi::Value JsZeroGradients(const Napi::CallbackInfo& info);
  Napi::Value JsSave(const Napi::CallbackInfo& info);
  Napi::Value JsLoad(const Napi::CallbackInfo& info);
  Napi::Value JsReadMoments(const Napi::CallbackInfo& info);
  Napi::Value JsWriteMoments(const Napi::CallbackInfo& info);
  Napi::Value JsStateBytes(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);

  std::shared_ptr<State> alive() const;
  JobOrder order(const Napi::CallbackInfo& info, size_t cancel_index) const;
  static PackedAdamW& made(State& state);

  std::shared_ptr<State> state_;
  AdamwOptions options_;
  std::vector<std::string> trainable_;
  bool disposed_ = false;
};

}  // namespace qn
