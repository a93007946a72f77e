#include "core/device.h"

#include <cstring>

namespace qn {

namespace {
int threads_of(int threads) { return threads > 0 ? threads : available_cores(); }
}  // namespace

Device::Device(int threads, Isa isa) : ready_(true), isa_(isa), pool_(threads_of(threads), host_ledger_) {}

Device::Device(int threads, Isa isa, int cuda_index)
    : cuda_index_(cuda_index), ready_(false), isa_(isa), pool_(threads_of(threads), host_ledger_) {}

void Device::begin_job(bool only_frees) {
  if (cuda_index_ < 0) return;
  if (!cuda_) {
    if (only_frees) return;
    cuda_ = std::make_unique<Cuda>(cuda_index_);
    ready_ = true;
  }
  cuda_->context.make_current();
}

void Device::copy_in(void* to, const void* from, int64_t bytes) {
  if (cuda_) return cuda_->context.copy_in(to, from, bytes);
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void Device::copy_out(void* to, const void* from, int64_t bytes) {
  if (cuda_) return cuda_->context.copy_out(to, from, bytes);
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void Device::copy(void* to, const void* from, int64_t bytes) {
  if (cuda_) return cuda_->context.copy(to, from, bytes);
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void Device::zero(void* to, int64_t bytes) {
  if (cuda_) return cuda_->context.zero(to, bytes);
  std::memset(to, 0, static_cast<size_t>(bytes));
}

std::optional<Device::Shortage> Device::shortage(int64_t bytes) {
  if (!cuda_) return std::nullopt;
  // The pool first: asking the GPU takes as long as a small forward pass.
  const int64_t kept = cuda_->context.memory().kept();
  if (bytes <= kept) return std::nullopt;
  const CudaContext::Free gpu = cuda_->context.free_memory();
  if (bytes <= kept + gpu.free) return std::nullopt;
  return Shortage{kept + gpu.free, gpu.total};
}

}  // namespace qn
