// The argument object of the adamw ops, for the CPU's and CUDA's functions.
#pragma once

#include <string>
#include <vector>

#include "binding/ops/ops.h"
#include "ops/adamw.h"

namespace qn {

// The bytes of a typed array of any element type; null when absent.
template <typename T>
T* bytes_of(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray()) return nullptr;
  const auto array = value.As<Napi::TypedArray>();
  return reinterpret_cast<T*>(static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset());
}

inline double number_of(const Napi::Object& object, const char* name, double otherwise) {
  const Napi::Value value = object.Get(name);
  return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : otherwise;
}

MomentFormat format_of(const Napi::Object& object, const char* name);

// { g, K, rowBegin, rowCount, storage, mode, …, moments, mValues, …, a, b, eps, rate, keep, seed, parameter, step }
AdamwArgs adamw_args_of(const Napi::Object& object);

// { format, values, scales, rows, K, rowBegin, rowCount, seed, parameter, step }
StoreRowsArgs store_args_of(const Napi::Object& object);

// { updateSquares, changedCodes, saturated } over all rows.
Napi::Object adamw_totals(Napi::Env env, const std::vector<AdamwRow>& rows);

}  // namespace qn
