// The NVFP4 codec as promises. Arrays are copied on the JS thread: lib/ops/quantize.ts hands over about a million
// elements a call, so that neither the copy nor the job takes long.
#pragma once

#include <napi.h>

namespace qn {

// (device, values f32[rows, cols], rows, cols, firstRow) → the largest magnitude
Napi::Value JsAmax(const Napi::CallbackInfo& info);
// (device, values f32[rows, cols], rows, cols, { globalScale, rounding, scaleRule, seed, firstRow }) → { codes, scales }
Napi::Value JsQuantizeNvfp4(const Napi::CallbackInfo& info);
// (device, codes, scales, rows, cols, globalScale) → f32[rows, cols]
Napi::Value JsDequantizeNvfp4(const Napi::CallbackInfo& info);
// (device, scales u8[rows, scaleCols], rows, scaleCols) → the 128x4 swizzled form, and back
Napi::Value JsToBlockedScales(const Napi::CallbackInfo& info);
Napi::Value JsFromBlockedScales(const Napi::CallbackInfo& info);
// (amax) → the two-level global scale
Napi::Value JsTwoLevelGlobalScale(const Napi::CallbackInfo& info);

}  // namespace qn
