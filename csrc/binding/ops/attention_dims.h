// { B, T, Q, KV, D, starts? } of a JS object; a dim that is missing is 1.
#pragma once

#include "binding/ops/ops.h"
#include "ops/attention.h"

namespace qn {

inline AttentionShape attention_shape(const Napi::Value& value) {
  const auto dims = value.As<Napi::Object>();
  const auto dim = [&](const char* name) { return dims.Has(name) ? integer(dims.Get(name)) : 1; };
  return {dim("B"), dim("T"), dim("Q"), dim("KV"), dim("D")};
}

// Its starts i32[B, T], checked, or null.
inline const int32_t* attention_starts(const Napi::Value& value) {
  const int32_t* starts = array_data<int32_t>(value.As<Napi::Object>().Get("starts"));
  const AttentionShape shape = attention_shape(value);
  check_segments(starts, shape.B, shape.T);
  return starts;
}

}  // namespace qn
