// What models will need, and what GPUs have.
#pragma once

#include <napi.h>

namespace qn {

// estimateMemory(config, plan): synchronous arithmetic.
Napi::Value JsEstimateMemory(const Napi::CallbackInfo& info);

// gpuMemory(index, openContext): a job of the environment's observer.
Napi::Value JsGpuMemory(const Napi::CallbackInfo& info);

}  // namespace qn
