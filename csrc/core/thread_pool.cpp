#include "core/thread_pool.h"

#include <algorithm>
#include <utility>

namespace qn {

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
    running_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  wake_.notify_all();
  drain(task, 0);
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return running_ == 0; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::worker_loop(int worker) {
  uint64_t seen = 0;
  for (;;) {
    Task task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      task = task_;
    }
    drain(task, worker);
    std::lock_guard lock(mutex_);
    if (--running_ == 0) finished_.notify_one();
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
