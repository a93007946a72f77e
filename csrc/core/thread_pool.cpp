#include "core/thread_pool.h"

#include <algorithm>
#include <utility>

namespace qn {

namespace {

// A decode step hands out hundreds of pieces tens of microseconds apart; sleeping between them would cost a futex
// wake-up (5-50 us) each. So both sides look this often before they sleep: 10-100 us depending on the processor's
// pause.
constexpr int kSpins = 2000;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Ready>
bool spin_until(Ready&& ready) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return true;
    pause_cpu();
  }
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads, MemoryLedger& ledger) {
  const int total = std::max(1, threads);
  for (int i = 0; i < total; ++i) scratch_.emplace_back(ledger, MemoryKind::kScratch, kWorkerScratchBytes);
  for (int i = 1; i < total; ++i) threads_.emplace_back([this, i] { worker_loop(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(int64_t count, int64_t grain, Erased work, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const Task task{work, context, count, grain};
  if (threads_.empty() || count <= grain) {  // nothing to share: no wake-ups, exceptions pass through
    for (int64_t begin = 0; begin < count; begin += grain) work(context, begin, std::min(count, begin + grain), 0);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    task_ = task;
    next_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  drain(task, 0);
  const auto done = [this] { return running_.load(std::memory_order_acquire) == 0; };
  if (!spin_until(done)) {
    std::unique_lock lock(mutex_);
    finished_.wait(lock, done);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::worker_loop(int worker) {
  uint64_t seen = 0;
  const auto ready = [&] { return stopping_ || generation_.load(std::memory_order_acquire) != seen; };
  for (;;) {
    if (!spin_until(ready)) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, ready);
    }
    if (stopping_) return;
    seen = generation_.load(std::memory_order_acquire);
    drain(task_, worker);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard lock(mutex_);  // the waiter either sees 0 or is already in wait()
      finished_.notify_one();
    }
  }
}

void ThreadPool::drain(const Task& task, int worker) {
  try {
    for (;;) {
      const int64_t begin = next_.fetch_add(task.grain, std::memory_order_relaxed);
      if (begin >= task.count) return;
      task.work(task.context, begin, std::min(task.count, begin + task.grain), worker);
    }
  } catch (...) {
    next_.store(task.count, std::memory_order_relaxed);
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

}  // namespace qn
