// The product of two NVFP4 operands on device 0, from host arrays, bf16 as Uint16Array (y: or Float32Array):
//   swizzleScalesCuda(blocked, scales, rows, cols)
//   quantizeW4a4Cuda(codes, rowScales, blockedScales, x, weight, T) → { amax, globalScale, alpha, residualAlpha }
//   linearW4a4Cuda(y, x, weight, T, accumulate)
#include "binding/ops/cuda_ops.h"
#include "core/cublaslt.h"
#include "ops/linear_w4a4.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

CudaBuffer same_size(const Napi::Value& array) {
  return CudaBuffer(static_cast<int64_t>(array.As<Napi::TypedArray>().ByteLength()));
}

void run_swizzle(const Napi::CallbackInfo& info) {
  const int64_t rows = integer(info[2]), cols = integer(info[3]);
  const CudaBuffer blocked = same_size(info[0]), scales = on_device(array_data<uint8_t>(info[1]), rows * cols);
  swizzle_scales_cuda(blocked.as<uint8_t>(), scales.as<uint8_t>(), rows, cols, nullptr);
  blocked.download(array_data<uint8_t>(info[0]));
}

Napi::Value run_quantize(const Napi::CallbackInfo& info) {
  const DeviceArray x(info[3]);
  const CudaBuffer codes = same_size(info[0]), row_scales = same_size(info[1]), scales = same_size(info[2]);
  const CudaBuffer on_device(sizeof(W4a4Scalars));
  const W4a4Input input{on_device.as<W4a4Scalars>(), codes.as<uint8_t>(), row_scales.as<uint8_t>(),
                        scales.as<uint8_t>()};
  quantize_w4a4_cuda(input, x.bf16(), weight_view(info[4]), integer(info[5]), nullptr);
  codes.download(array_data<uint8_t>(info[0]));
  row_scales.download(array_data<uint8_t>(info[1]));
  scales.download(array_data<uint8_t>(info[2]));
  W4a4Scalars scalars;
  on_device.download(&scalars);
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("amax", scalars.amax);
  out.Set("globalScale", scalars.global_scale);
  out.Set("alpha", scalars.alpha[0]);
  out.Set("residualAlpha", scalars.alpha[1]);
  return out;
}

void run_linear(const Napi::CallbackInfo& info) {
  const DeviceArray y(info[0]), x(info[1]);
  const DeviceWeight w(weight_view(info[2]));
  const int64_t T = integer(info[3]);
  const CudaBuffer scratch(linear_w4a4_scratch_bytes(w.view.rows, w.view.cols, T));
  CublasLt blas;
  linear_w4a4_cuda(y.buffer.as<void>(), y.type, x.bf16(), w.view, T, flag(info[4]),
                   {blas, scratch.as<void>(), scratch.bytes(), nullptr});
  y.download();
}

#endif

}  // namespace

void register_linear_w4a4_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("swizzleScalesCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_swizzle)>));
  ops.Set("quantizeW4a4Cuda", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(run_quantize)>));
  ops.Set("linearW4a4Cuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_linear)>));
}

}  // namespace qn
