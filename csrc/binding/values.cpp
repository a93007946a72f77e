#include "binding/values.h"

namespace qn {

namespace {

template <typename T>
std::vector<T> copy_of(const Napi::Value& value, napi_typedarray_type type, const char* name) {
  if (value.IsUndefined() || value.IsNull()) return {};
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw Napi::TypeError::New(value.Env(), std::string("Expected a ") + name);
  }
  const auto array = value.As<Napi::TypedArray>();
  const auto* data =
      reinterpret_cast<const T*>(static_cast<const char*>(array.ArrayBuffer().Data()) + array.ByteOffset());
  return std::vector<T>(data, data + array.ElementLength());
}

}  // namespace

int64_t int_of(const Napi::Value& value) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), "Expected an integer");
  return value.As<Napi::Number>().Int64Value();
}

double number_of(const Napi::Value& value) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), "Expected a number");
  return value.As<Napi::Number>().DoubleValue();
}

bool bool_of(const Napi::Value& value) { return value.ToBoolean().Value(); }

std::string string_of(const Napi::Value& value) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), "Expected a string");
  return value.As<Napi::String>().Utf8Value();
}

uint64_t seed_of(const Napi::Value& value) {
  if (!value.IsBigInt()) throw Napi::TypeError::New(value.Env(), "Expected a bigint");
  bool lossless = false;
  return value.As<Napi::BigInt>().Uint64Value(&lossless);
}

Napi::Uint8Array uint8_array_of(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(value.Env(), "Expected a Uint8Array");
  }
  return value.As<Napi::Uint8Array>();
}

std::vector<int32_t> int32s_of(const Napi::Value& value) {
  return copy_of<int32_t>(value, napi_int32_array, "Int32Array");
}
std::vector<uint8_t> bytes_of(const Napi::Value& value) {
  return copy_of<uint8_t>(value, napi_uint8_array, "Uint8Array");
}
std::vector<float> floats_of(const Napi::Value& value) {
  return copy_of<float>(value, napi_float32_array, "Float32Array");
}

Storage storage_of(const std::string& name) {
  if (name == "nvfp4") return Storage::kNvfp4;
  if (name == "fp32") return Storage::kF32;
  if (name == "fp16") return Storage::kF16;
  if (name == "bf16") return Storage::kBF16;
  fail(Code::kInvalidArgument, "Expected 'nvfp4' | 'fp32' | 'fp16' | 'bf16' but received '%s'", name.c_str());
}

const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::kNvfp4:
      return "nvfp4";
    case Storage::kBnb4:
      return "bnb4";
    case Storage::kF32:
      return "fp32";
    case Storage::kF16:
      return "fp16";
    case Storage::kBF16:
      return "bf16";
  }
  return "";
}

Codebook codebook_of(const std::string& name) {
  if (name == "nf4") return Codebook::kNf4;
  if (name == "fp4") return Codebook::kFp4;
  fail(Code::kInvalidArgument, "Expected 'nf4' | 'fp4' but received '%s'", name.c_str());
}

const char* codebook_name(Codebook codebook) { return codebook == Codebook::kNf4 ? "nf4" : "fp4"; }

}  // namespace qn
