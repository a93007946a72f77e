// The NVFP4 codec as promises. Arrays are copied on the JS thread: lib/ops/quantize.ts hands over about a million
// elements a call, so that neither the copy nor the job takes long.
#pragma once

#include <napi.h>

namespace qn {

// Adds to `exports`, as types/native.ts (NativeCodec) declares them: amax, twoLevelGlobalScale, quantizeNvfp4,
// dequantizeNvfp4, toBlockedScales, fromBlockedScales.
void register_codec(Napi::Env env, Napi::Object exports);

}  // namespace qn
