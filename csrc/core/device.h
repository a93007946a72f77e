// A place to compute: its lane, threads, instruction set and memory ledgers, and on CUDA its GPU. One per distinct
// `device` + `threads` of a JS environment; models, caches and optimizers hold it by shared_ptr.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "core/cpu.h"
#include "core/cuda_context.h"
#include "core/lane.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace qn {

class Device {
 public:
  // The CPU. threads = 0: available_cores().
  Device(int threads, Isa isa);
  // A GPU; the threads prepare and convert what goes there and comes back. It is opened by the first begin_job(), which
  // takes long and throws as CudaContext() does.
  Device(int threads, Isa isa, int cuda_index);

  // Of tensors: host memory, or the GPU's. On the lane.
  MemoryLedger& ledger() { return cuda_ ? cuda_->ledger : host_ledger_; }
  MemoryLedger& host_ledger() { return host_ledger_; }
  Lane& lane() { return lane_; }
  Cpu cpu(const CancelToken* cancel = nullptr) { return Cpu{pool_, isa_, cancel}; }
  int threads() const { return pool_.threads(); }
  Isa isa() const { return isa_; }
  bool is_cuda() const { return cuda_index_ >= 0; }
  CudaContext* cuda() { return cuda_ ? &cuda_->context : nullptr; }  // null on the CPU. On the lane.
  // From any thread: ledger() and cuda() may be used.
  bool ready() const { return ready_; }

  // Around every job, on the lane. A job that only frees opens no GPU. end_job() waits for what the job launched and
  // throws its error.
  void begin_job(bool only_frees);
  void end_job() {
    if (cuda_) cuda_->context.synchronize();
  }

  // Between host memory and the memory of ledger(), in the order of the device's other work. Both have finished with
  // the host's bytes when they return.
  void copy_in(void* to, const void* from, int64_t bytes);
  void copy_out(void* to, const void* from, int64_t bytes);
  // Within the memory of ledger().
  void copy(void* to, const void* from, int64_t bytes);
  void zero(void* to, int64_t bytes);
  // What there is when `bytes` more than those in use do not fit into the GPU, else nothing. On the CPU nothing: there
  // memory is the system's, which gives it when it is touched.
  struct Shortage {
    int64_t free, total;  // bytes of the GPU, those that its pool keeps counted as free
  };
  std::optional<Shortage> shortage(int64_t bytes);
  // Gives freed memory back to the GPU.
  void trim() {
    if (cuda_) cuda_->context.memory().trim();
  }

 private:
  struct Cuda {
    explicit Cuda(int index) : context(index), ledger(context.memory()) {}
    CudaContext context;
    MemoryLedger ledger;
  };

  MemoryLedger host_ledger_;
  int cuda_index_ = -1;
  std::unique_ptr<Cuda> cuda_;
  std::atomic<bool> ready_;
  Isa isa_;
  ThreadPool pool_;
  Lane lane_;  // last: stops before what its jobs use
};

}  // namespace qn
