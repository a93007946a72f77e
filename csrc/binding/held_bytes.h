// A Uint8Array that a job fills: one that JavaScript first sees when the promise settles, or one of JavaScript's own.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>

namespace qn {

// Made and, in the job's convert step, destroyed on the JS thread. The reference keeps the memory in place meanwhile.
struct HeldBytes {
  HeldBytes(Napi::Env env, int64_t count) : HeldBytes(Napi::Uint8Array::New(env, static_cast<size_t>(count))) {}
  explicit HeldBytes(const Napi::Uint8Array& array)
      : data(const_cast<uint8_t*>(array.Data())),
        bytes(static_cast<int64_t>(array.ByteLength())),
        reference(std::make_shared<Napi::Reference<Napi::Uint8Array>>(Napi::Persistent(array))) {}
  Napi::Value value() const { return reference->Value(); }

  uint8_t* data;
  int64_t bytes;
  std::shared_ptr<Napi::Reference<Napi::Uint8Array>> reference;
};

}  // namespace qn
