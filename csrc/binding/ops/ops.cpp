#include "binding/ops/ops.h"

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace qn {

Cpu ops_cpu(const Napi::CallbackInfo& info) {
  // Devices hold no JS state, so one set serves every environment of the process.
  static std::mutex mutex;
  static std::map<std::pair<Isa, int>, std::unique_ptr<Device>> devices;
  Isa isa = detect_isa();
  int threads = 1;
  if (info.Length() > 0 && info[info.Length() - 1].IsObject() && !info[info.Length() - 1].IsTypedArray()) {
    const auto options = info[info.Length() - 1].As<Napi::Object>();
    if (options.Has("isa")) isa = isa_from_name(options.Get("isa").As<Napi::String>().Utf8Value().c_str());
    if (options.Has("threads")) threads = options.Get("threads").As<Napi::Number>().Int32Value();
  }
  std::lock_guard lock(mutex);
  auto& device = devices[{isa, threads}];
  if (!device) device = std::make_unique<Device>(threads, isa);
  return device->cpu();
}

namespace {
template <typename T>
T* checked(const Napi::Value& value, napi_typedarray_type type, const char* name) {
  if (value.IsNull() || value.IsUndefined()) return nullptr;
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw Napi::TypeError::New(value.Env(), std::string("Expected a ") + name);
  }
  const auto array = value.As<Napi::TypedArray>();
  return reinterpret_cast<T*>(static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset());
}
}  // namespace

template <>
float* array_data<float>(const Napi::Value& value) {
  return checked<float>(value, napi_float32_array, "Float32Array");
}
template <>
uint8_t* array_data<uint8_t>(const Napi::Value& value) {
  return checked<uint8_t>(value, napi_uint8_array, "Uint8Array");
}
template <>
uint16_t* array_data<uint16_t>(const Napi::Value& value) {
  return checked<uint16_t>(value, napi_uint16_array, "Uint16Array");
}
template <>
int32_t* array_data<int32_t>(const Napi::Value& value) {
  return checked<int32_t>(value, napi_int32_array, "Int32Array");
}

}  // namespace qn
