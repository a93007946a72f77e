// estimateMemory(config, plan): synchronous arithmetic.
#pragma once

#include <napi.h>

namespace qn {

Napi::Value JsEstimateMemory(const Napi::CallbackInfo& info);

}  // namespace qn
