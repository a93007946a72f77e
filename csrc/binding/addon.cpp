// The addon's exports. types/native.ts is this list in TypeScript.
#include <napi.h>

#include "binding/environment.h"
#include "binding/native_codec.h"
#include "binding/native_convert.h"
#include "binding/native_device.h"
#include "binding/native_kv_cache.h"
#include "binding/native_linear_ste.h"
#include "binding/native_memory.h"
#include "binding/native_model.h"
#include "binding/native_optimizer.h"
#include "binding/native_tape.h"
#include "binding/native_tensor.h"
#include "binding/ops/ops.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  Napi::Object ops = Napi::Object::New(env);
  qn::register_linear_ops(env, ops);
  qn::register_linear_cuda_ops(env, ops);
  qn::register_linear_w4a4_cuda_ops(env, ops);
  qn::register_gemv_cuda_ops(env, ops);
  qn::register_small_ops(env, ops);
  qn::register_small_cuda_ops(env, ops);
  qn::register_small_cuda_times(env, ops);
  qn::register_sample_cuda_ops(env, ops);
  qn::register_attention_ops(env, ops);
  qn::register_attention_cuda_ops(env, ops);
  qn::register_attention_decode_cuda_ops(env, ops);
  qn::register_nvfp4_ops(env, ops);
  qn::register_adamw_ops(env, ops);
  qn::register_adamw_cuda_ops(env, ops);
  exports.Set("ops", ops);

  auto* environment = new qn::Environment(env);
  env.SetInstanceData(environment);
  const Napi::Function kv_cache = qn::NativeKvCache::define(env);
  environment->kv_cache_class = Napi::Persistent(kv_cache);
  environment->tensor_class = Napi::Persistent(qn::NativeTensor::define(env));
  environment->tape_class = Napi::Persistent(qn::NativeTape::define(env));
  environment->linear_ste_class = Napi::Persistent(qn::NativeLinearSte::define(env));
  exports.Set("Cancel", qn::NativeCancel::define(env));
  exports.Set("Device", qn::NativeDevice::define(env));
  exports.Set("Model", qn::NativeModel::define(env));
  exports.Set("KvCache", kv_cache);
  exports.Set("Optimizer", qn::NativeOptimizer::define(env));
  exports.Set("linearSte", Napi::Function::New<qn::NativeLinearSte::JsForward>(env, "linearSte"));
  exports.Set("estimateMemory", Napi::Function::New<qn::JsEstimateMemory>(env, "estimateMemory"));
  exports.Set("gpuMemory", Napi::Function::New<qn::JsGpuMemory>(env, "gpuMemory"));
  qn::register_codec(env, exports);
  qn::register_convert(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(qwen3_nvfp4, init)
