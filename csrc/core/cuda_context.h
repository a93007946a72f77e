// What a device needs to compute on one GPU: its stream, its memory pool and cuBLASLt. Needs no CUDA header; in a build
// without CUDA the constructor refuses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/cublaslt.h"
#include "core/memory.h"

namespace qn {

// Memory of one GPU in a pool of our own. Allocating and freeing are ordered on the stream and cost microseconds; what
// is freed stays with the pool until trim(), or until an allocation fails without it.
class CudaMemory : public Memory {
 public:
  CudaMemory(int index, CudaStream stream);
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  void* allocate(int64_t bytes, bool zeroed) override;
  void free(void* data) noexcept override;
  std::string describe_free() override;
  // Gives freed memory back to the GPU, after everything launched before.
  void trim();
  // Bytes that are free in the pool: taken from the GPU and not in use.
  int64_t kept();

 private:
  int index_;
  CudaStream stream_;
  void* pool_ = nullptr;
};

class CudaContext {
 public:
  // Error(kCudaUnavailable): no such GPU, no driver, no cuBLASLt, with the reason. Error(kCudaFailure) otherwise.
  explicit CudaContext(int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  // Every thread calls this before it uses what is below.
  void make_current() const;
  CudaStream stream() const { return stream_.value; }
  CudaMemory& memory() { return *memory_; }
  CublasLt& blas() { return *blas_; }
  int index() const { return index_; }
  const std::string& name() const { return name_; }
  int capability() const { return capability_; }  // compute capability, as 90 for 9.0

  // Waits for everything launched so far; an error of one of them is thrown here, and cleared.
  void synchronize();
  // Throws the error of a launch that has run, and clears it; does not wait.
  void check();
  // Ordered on the stream. copy_in has read all of `from` when it returns, unless that is pinned memory, which must
  // stay as it is until the copy has run; copy_out has written all of `to`.
  void copy_in(void* to, const void* from, int64_t bytes);
  void copy_out(void* to, const void* from, int64_t bytes);
  void copy(void* to, const void* from, int64_t bytes);
  void zero(void* to, int64_t bytes);
  // `rows` pieces of `width` bytes, stored `to_stride` and `from_stride` bytes apart.
  void copy_in_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t width, int64_t rows);

  struct Free {
    int64_t free, total;  // bytes of the whole GPU, all processes
  };
  Free free_memory() const;

 private:
  struct Stream {
    ~Stream();
    CudaStream value = nullptr;
  };

  int index_;
  std::string name_;
  int capability_ = 0;
  Stream stream_;
  std::unique_ptr<CudaMemory> memory_;
  std::unique_ptr<CublasLt> blas_;
};

// A point of a context's stream that the host can wait for.
class CudaEvent {
 public:
  CudaEvent() = default;
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  // Behind everything launched so far.
  void record(CudaContext& context);
  // Returns at once when nothing was recorded.
  void wait();

 private:
  void* event_ = nullptr;
};

// Host memory that the GPU copies from and to at full speed, for staging. Throws Error(kOutOfMemory).
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(int64_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept { swap(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(PinnedBuffer& other) noexcept;

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace qn
