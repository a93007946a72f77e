// What CUDA offers on this machine, and memory on its device. Needs no CUDA header, and compiles to refusals without
// CUDA.
#pragma once

#include <cstdint>
#include <string>

namespace qn {

// A cudaStream_t; null is the default stream.
using CudaStream = void*;

struct CudaProbe {
  bool built = false;  // whether this build has CUDA code
  int devices = 0;
  std::string reason;  // why CUDA cannot be used, with the remedy; empty when it can
};
// Asks the driver anew at every call. Never throws.
CudaProbe probe_cuda();

// Throws Error(kCudaUnavailable) with the probe's reason unless there is a device of that index.
void require_cuda(int index = 0);

// Owning, movable memory on the current device, uninitialised. Synchronous copies: for tests and set-up, not for steps.
class CudaBuffer {
 public:
  CudaBuffer() = default;
  explicit CudaBuffer(int64_t bytes);
  ~CudaBuffer();
  CudaBuffer(CudaBuffer&& other) noexcept { swap(other); }
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }
  void upload(const void* from);  // bytes() bytes
  void download(void* to) const;  // bytes() bytes, after everything launched before on the default stream

 private:
  void swap(CudaBuffer& other) noexcept;

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace qn
