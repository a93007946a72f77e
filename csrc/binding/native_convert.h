// Conversions of tensors in files as promises; lib/convert hands over a few million elements a call.
#pragma once

#include <napi.h>

namespace qn {

// Adds to `exports`, as types/native.ts (NativeConverter) declares them: convertRange, amaxOfRange, compareRanges.
void register_convert(Napi::Env env, Napi::Object exports);

}  // namespace qn
