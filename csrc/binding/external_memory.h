// Tells the collector how much lies behind a small JavaScript object, so that forgotten ones are collected in time.
#pragma once

#include <napi.h>

#include <cstdint>

namespace qn {

// JS thread only. set(env, 0) before it goes: it has no environment of its own.
class ExternalMemory {
 public:
  void set(Napi::BasicEnv env, int64_t bytes) {
    if (bytes != bytes_) Napi::MemoryManagement::AdjustExternalMemory(env, bytes - bytes_);
    bytes_ = bytes;
  }

 private:
  int64_t bytes_ = 0;
};

}  // namespace qn
