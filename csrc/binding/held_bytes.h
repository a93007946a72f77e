// A Uint8Array that a job fills and JavaScript first sees when the promise settles.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>

namespace qn {

// Made and, in the job's convert step, destroyed on the JS thread. The reference keeps the memory in place meanwhile.
struct HeldBytes {
  HeldBytes(Napi::Env env, int64_t count) {
    const auto array = Napi::Uint8Array::New(env, static_cast<size_t>(count));
    data = const_cast<uint8_t*>(array.Data());
    reference = std::make_shared<Napi::Reference<Napi::Uint8Array>>(Napi::Persistent(array));
  }
  Napi::Value value() const { return reference->Value(); }

  uint8_t* data;
  std::shared_ptr<Napi::Reference<Napi::Uint8Array>> reference;
};

}  // namespace qn
