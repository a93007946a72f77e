// What the CUDA ops for tests and benchmarks share: arrays on device 0 and the refusal without one.
#pragma once

#include <vector>

#include "binding/ops/ops.h"
#include "core/cuda_device.h"
#include "ops/gemv.h"

namespace qn {

inline bool flag(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

// options[name], or `otherwise`.
inline int64_t option(const Napi::Value& options, const char* name, int64_t otherwise = 0) {
  if (!options.IsObject()) return otherwise;
  const Napi::Value value = options.As<Napi::Object>().Get(name);
  return value.IsNumber() ? integer(value) : otherwise;
}

// A copy on the device, empty without data.
CudaBuffer on_device(const void* data, int64_t bytes);
// `bytes` of low + random % span.
CudaBuffer random_bytes(int64_t bytes, uint32_t low, uint32_t span);
// bf16 values over ±[0.5, 2).
CudaBuffer random_bf16(int64_t count);

// A bf16 or f32 typed array's memory and its copy on the device.
struct DeviceArray {
  void* host = nullptr;
  CudaFloat type = CudaFloat::kBF16;
  CudaBuffer buffer;

  explicit DeviceArray(const Napi::Value& value) {
    if (value.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array) {
      host = array_data<float>(value);
      type = CudaFloat::kF32;
    } else {
      host = array_data<uint16_t>(value);
    }
    buffer = CudaBuffer(static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength()));
    if (buffer.bytes() > 0) buffer.upload(host);
  }
  uint16_t* bf16() const { return buffer.as<uint16_t>(); }
  void download() const {
    if (buffer.bytes() > 0) buffer.download(host);
  }
};

// A weight whose arrays are copies on the device.
struct DeviceWeight {
  WeightView view;
  std::vector<CudaBuffer> buffers;

  explicit DeviceWeight(const WeightView& host) : view(host) {
    const int64_t count = host.rows * host.cols;
    view.dense = copy(host.dense, count * (host.storage == Storage::kF32 ? 4 : 2));
    view.packed.codes = copy(host.packed.codes, count / 2);
    view.packed.scales = copy(host.packed.scales, count / 16);
    view.residual.codes = copy(host.residual.codes, count / 2);
    view.residual.scales = copy(host.residual.scales, count / 16);
    view.bnb4.codes = copy(host.bnb4.codes, count / 2);
    view.bnb4.absmax = reinterpret_cast<const float*>(copy(host.bnb4.absmax, count / 16));
  }

 private:
  const uint8_t* copy(const void* data, int64_t bytes) {
    buffers.push_back(on_device(data, bytes));
    return buffers.back().as<uint8_t>();
  }
};

// run(info) as a JS function, once there is a device.
template <void (*run)(const Napi::CallbackInfo&)>
void with_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    run(info);
  });
}
template <Napi::Value (*run)(const Napi::CallbackInfo&)>
Napi::Value value_with_cuda(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    return run(info);
  });
}

// Stand in for CUDA code in a build without it, after require_cuda() has thrown.
inline void no_cuda(const Napi::CallbackInfo&) {}
inline Napi::Value no_cuda_value(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
#if defined(QN_WITH_CUDA)
#define QN_CUDA_RUN(run) run
#define QN_CUDA_VALUE(run) run
#else
#define QN_CUDA_RUN(run) no_cuda
#define QN_CUDA_VALUE(run) no_cuda_value
#endif

}  // namespace qn
