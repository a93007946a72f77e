// Reading JavaScript arguments that lib/ has checked, and type-tagged wrapping. A wrong kind still throws, never
// crashes.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "binding/errors.h"
#include "ops/weight_view.h"

namespace qn {

// Methods look up `this` by V8's signature check; an object that arrives as an argument is told by its tag instead.
template <typename T>
T& unwrap(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&T::kTag)) {
    throw Napi::TypeError::New(value.Env(), std::string("Expected a native ") + T::kName);
  }
  return *T::Unwrap(value.As<Napi::Object>());
}

inline Napi::Object object_of(const Napi::Value& value) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), "Expected an object");
  return value.As<Napi::Object>();
}

int64_t int_of(const Napi::Value& value);
double number_of(const Napi::Value& value);
bool bool_of(const Napi::Value& value);
std::string string_of(const Napi::Value& value);
uint64_t seed_of(const Napi::Value& value);  // a BigInt

Napi::Uint8Array uint8_array_of(const Napi::Value& value);

// Copies; undefined and null give an empty vector.
std::vector<int32_t> int32s_of(const Napi::Value& value);
std::vector<uint8_t> bytes_of(const Napi::Value& value);
std::vector<float> floats_of(const Napi::Value& value);

// "nvfp4", "fp32", "fp16", "bf16"
Storage storage_of(const std::string& name);
const char* storage_name(Storage storage);
Codebook codebook_of(const std::string& name);
const char* codebook_name(Codebook codebook);

}  // namespace qn
