// A device tensor f32[rows, cols] (logits, hidden states) that stays where it is until it is read.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/external_memory.h"
#include "binding/values.h"

namespace qn {

class NativeTensor : public Napi::ObjectWrap<NativeTensor> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e003};
  static constexpr const char* kName = "Tensor";
  static Napi::Function define(Napi::Env env);
  explicit NativeTensor(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;

  static Napi::Value wrap(Napi::Env env, std::shared_ptr<Device> device, Buffer values, int64_t rows, int64_t cols);

 private:
  // The ledger of `values` is the device's, so the device goes last.
  struct Content {
    std::shared_ptr<Device> device;
    Buffer values;
  };

  Napi::Value JsRows(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), double(rows_)); }
  Napi::Value JsCols(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), double(cols_)); }
  Napi::Value JsRead(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Device> device_;
  std::shared_ptr<Content> content_;  // null once disposed
  int64_t rows_ = 0, cols_ = 0;
  ExternalMemory external_;
};

// Copies float rows into a new Float32Array on the lane and settles with it.
// source(const Cpu&) -> const float* runs on the lane.
template <typename Copy>
Napi::Value read_floats(Napi::Env env, JobOrder order, int64_t count, Copy copy) {
  const Napi::Float32Array array = Napi::Float32Array::New(env, static_cast<size_t>(count));
  // The array is held by the reference and unknown to JavaScript until the promise settles, so its memory stays put.
  auto held = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(array));
  float* out = const_cast<float*>(array.Data());
  return run_job(
      env, std::move(order),
      [out, copy = std::move(copy)](const Cpu& cpu) mutable {
        copy(out, cpu);
        return Nothing{};
      },
      [held](Napi::Env, Nothing&) -> Napi::Value { return held->Value(); });
}

}  // namespace qn
