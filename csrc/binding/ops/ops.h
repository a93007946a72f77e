// Single ops on typed arrays, synchronous, for test/ops and benchmarks/ops alone: the SDK never calls these.
// Every function's last argument may be { isa, threads }; without it the best instruction set and one thread.
#pragma once

#include <napi.h>

#include "binding/errors.h"
#include "core/device.h"
#include "ops/weight_view.h"

namespace qn {

// The device for { isa?: string, threads?: number }; made once per environment and combination.
Cpu ops_cpu(const Napi::CallbackInfo& info);

// The data of a typed array argument (null for null or undefined). Checks the element type.
template <typename T>
T* array_data(const Napi::Value& value);
template <>
float* array_data<float>(const Napi::Value& value);
template <>
uint8_t* array_data<uint8_t>(const Napi::Value& value);
template <>
uint16_t* array_data<uint16_t>(const Napi::Value& value);
template <>
int32_t* array_data<int32_t>(const Napi::Value& value);

// { storage: 'nvfp4' | 'f32' | 'f16' | 'bf16', rows, cols, dense?, codes?, scales?, globalScale?, residualCodes?,
// residualScales?, residualGlobalScale? } as a view of the arrays' memory; checks their lengths.
WeightView weight_view(const Napi::Value& value);

inline int64_t integer(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }
inline float number(const Napi::Value& value) { return value.As<Napi::Number>().FloatValue(); }

// One line per file in binding/ops/: adds its functions to `exports.ops`.
void register_linear_ops(Napi::Env env, Napi::Object ops);
void register_linear_cuda_ops(Napi::Env env, Napi::Object ops);
void register_linear_w4a4_cuda_ops(Napi::Env env, Napi::Object ops);
void register_gemv_cuda_ops(Napi::Env env, Napi::Object ops);
void register_small_ops(Napi::Env env, Napi::Object ops);
void register_small_cuda_ops(Napi::Env env, Napi::Object ops);
void register_small_cuda_times(Napi::Env env, Napi::Object ops);
void register_sample_cuda_ops(Napi::Env env, Napi::Object ops);
void register_attention_ops(Napi::Env env, Napi::Object ops);
void register_attention_cuda_ops(Napi::Env env, Napi::Object ops);
void register_attention_decode_cuda_ops(Napi::Env env, Napi::Object ops);
void register_nvfp4_ops(Napi::Env env, Napi::Object ops);
void register_adamw_ops(Napi::Env env, Napi::Object ops);
void register_adamw_cuda_ops(Napi::Env env, Napi::Object ops);

}  // namespace qn
