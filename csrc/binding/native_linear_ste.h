// linearSte: one straight-through layer and the context of its backward pass.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "binding/environment.h"
#include "binding/model_state.h"
#include "binding/values.h"
#include "train/linear_ste.h"

namespace qn {

class NativeLinearSte : public Napi::ObjectWrap<NativeLinearSte> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e008};
  static constexpr const char* kName = "LinearSteContext";
  static Napi::Function define(Napi::Env env);
  explicit NativeLinearSte(const Napi::CallbackInfo& info);

  // (device, { weight | model + parameter, rows, cols, input, tokens, twoLevel, scaleRule }, cancel)
  static Napi::Value JsForward(const Napi::CallbackInfo& info);

 private:
  // What backward needs: the input, and Q(w) as its own copy or as a parameter that must not have changed.
  struct Context {
    std::shared_ptr<Device> device;
    std::vector<float> input;
    int64_t N = 0, K = 0, T = 0;
    std::optional<QuantizedMatrix> own;
    std::shared_ptr<ModelState> model;
    std::string parameter;
    uint64_t version = 0;

    WeightView view() const;
  };

  Napi::Value JsBackward(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Context> context_;
  std::shared_ptr<Device> device_;
};

}  // namespace qn
