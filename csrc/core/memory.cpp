#include "core/memory.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/status.h"

namespace qn {

const char* memory_kind_name(MemoryKind kind) {
  constexpr const char* kNames[kMemoryKinds] = {"weights",     "scales", "moments", "gradients",
                                                "activations", "cache",  "scratch"};
  return kNames[static_cast<int>(kind)];
}

namespace {

class HostMemory : public Memory {
 public:
  void* allocate(int64_t bytes, bool zeroed) override {
    const auto rounded = static_cast<size_t>(Arena::aligned(bytes));
    void* data = std::aligned_alloc(64, rounded);
    if (data && zeroed) std::memset(data, 0, rounded);
    return data;
  }
  void free(void* data) noexcept override { std::free(data); }
};

}  // namespace

Memory& host_memory() {
  // Never destroyed: buffers of other static objects are freed after it would be.
  static HostMemory* const memory = new HostMemory;
  return *memory;
}

void MemoryLedger::charge(MemoryKind kind, int64_t bytes) {
  bytes_[static_cast<int>(kind)].fetch_add(bytes, std::memory_order_relaxed);
  const int64_t total = total_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = peak_.load(std::memory_order_relaxed);
  while (total > peak && !peak_.compare_exchange_weak(peak, total, std::memory_order_relaxed)) {
  }
}

void MemoryLedger::release(MemoryKind kind, int64_t bytes) {
  bytes_[static_cast<int>(kind)].fetch_sub(bytes, std::memory_order_relaxed);
  total_.fetch_sub(bytes, std::memory_order_relaxed);
}

Buffer::Buffer(MemoryLedger& ledger, MemoryKind kind, int64_t bytes, bool zeroed) : kind_(kind) {
  if (bytes < 0)
    fail(Code::kInvalidArgument, "Expected a buffer size of 0 or more bytes but received %lld", (long long)bytes);
  data_ = ledger.memory().allocate(bytes == 0 ? 1 : bytes, zeroed);
  if (!data_) {
    fail(Code::kOutOfMemory, "out of memory: %lld bytes of %s were asked, %lld bytes are in use%s", (long long)bytes,
         memory_kind_name(kind), (long long)ledger.total(), ledger.memory().describe_free().c_str());
  }
  bytes_ = bytes;
  ledger_ = &ledger;
  ledger.charge(kind, bytes);
}

Buffer::~Buffer() {
  if (!data_) return;
  ledger_->release(kind_, bytes_);
  ledger_->memory().free(data_);
}

void Buffer::swap(Buffer& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(kind_, other.kind_);
  std::swap(ledger_, other.ledger_);
}

void* Arena::take_bytes(int64_t bytes) {
  const int64_t start = used_;
  used_ += aligned(bytes);
  if (used_ > buffer_.bytes()) {
    fail(Code::kInternal, "the memory plan is too small: %lld of %lld bytes asked", (long long)used_,
         (long long)buffer_.bytes());
  }
  return buffer_.as<char>() + start;
}

}  // namespace qn
