// Accounted memory: every lasting or large allocation of the core is a Buffer charged to a ledger by kind.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace qn {

enum class MemoryKind { kWeights, kScales, kMoments, kGradients, kActivations, kCache, kScratch };
constexpr int kMemoryKinds = 7;
const char* memory_kind_name(MemoryKind kind);

// Where the buffers of a ledger live. Thread safe.
class Memory {
 public:
  virtual ~Memory() = default;
  // 64-byte aligned at least; null when there is not enough.
  virtual void* allocate(int64_t bytes, bool zeroed) = 0;
  virtual void free(void* data) noexcept = 0;
  // What a failed allocation tells its caller besides the bytes asked: what is free, or nothing.
  virtual std::string describe_free() { return ""; }
};
Memory& host_memory();

// Bytes in use by kind, and the highest total since the last reset_peak(). Thread safe.
class MemoryLedger {
 public:
  explicit MemoryLedger(Memory& memory = host_memory()) : memory_(memory) {}
  Memory& memory() { return memory_; }
  void charge(MemoryKind kind, int64_t bytes);
  void release(MemoryKind kind, int64_t bytes);
  int64_t bytes(MemoryKind kind) const { return bytes_[static_cast<int>(kind)].load(std::memory_order_relaxed); }
  int64_t total() const { return total_.load(std::memory_order_relaxed); }
  int64_t peak() const { return peak_.load(std::memory_order_relaxed); }
  void reset_peak() { peak_.store(total(), std::memory_order_relaxed); }

 private:
  Memory& memory_;
  std::array<std::atomic<int64_t>, kMemoryKinds> bytes_{};
  std::atomic<int64_t> total_{0};
  std::atomic<int64_t> peak_{0};
};

// Owning, movable, 64-byte aligned memory of the ledger's place: code that reads data() on the host must know that it
// is there. Contents start uninitialised unless `zeroed`. Throws Error(kOutOfMemory) with the bytes asked and in use.
// The ledger must outlive the buffer.
class Buffer {
 public:
  Buffer() = default;
  Buffer(MemoryLedger& ledger, MemoryKind kind, int64_t bytes, bool zeroed = false);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  int64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(Buffer& other) noexcept;

  void* data_ = nullptr;
  int64_t bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kScratch;
  MemoryLedger* ledger_ = nullptr;
};

// Counts what an Arena would need: the same take() calls, no memory. Plans and runs share one template over both.
class ArenaPlan {
 public:
  template <typename T>
  T* take(int64_t count) {
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) & ~int64_t{63};
    return nullptr;
  }
  int64_t bytes() const { return used_; }

 private:
  int64_t used_ = 0;
};

// Bump allocation inside one Buffer, sized by a plan made before the work starts. Single-threaded.
class Arena {
 public:
  Arena(MemoryLedger& ledger, MemoryKind kind, int64_t bytes) : buffer_(ledger, kind, bytes) {}

  // `count` elements, 64-byte aligned, uninitialised. Running out is a bug of the plan: Error(kInternal).
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }
  int64_t capacity() const { return buffer_.bytes(); }

  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

 private:
  void* take_bytes(int64_t bytes);

  Buffer buffer_;
  int64_t used_ = 0;
};

}  // namespace qn
