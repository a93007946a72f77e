// { B, T, Q, KV, D } of a JS object; what is missing is 1.
#pragma once

#include "binding/ops/ops.h"
#include "ops/attention.h"

namespace qn {

inline AttentionShape attention_shape(const Napi::Value& value) {
  const auto dims = value.As<Napi::Object>();
  const auto dim = [&](const char* name) { return dims.Has(name) ? integer(dims.Get(name)) : 1; };
  return {dim("B"), dim("T"), dim("Q"), dim("KV"), dim("D")};
}

}  // namespace qn
