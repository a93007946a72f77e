// A fixed set of threads that split index ranges. The calling thread works too, so `threads` is the total.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/memory.h"

namespace qn {

// Fixed per-worker scratch for packing and rows; an op that needs more must split its work.
constexpr int64_t kWorkerScratchBytes = 4 << 20;

class ThreadPool {
 public:
  ThreadPool(int threads, MemoryLedger& ledger);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(scratch_.size()); }

  // Calls work(begin, end, worker) over [0, count) in pieces of `grain` (the last may be shorter) and waits for all.
  // Pieces are the same whatever the number of threads, so an op that sums within a piece is independent of it.
  // The first exception stops the hand-out of pieces and is rethrown here. Not reentrant: work must not call run().
  template <typename Work>
  void run(int64_t count, int64_t grain, Work&& work) {
    using Plain = std::remove_reference_t<Work>;
    run_erased(
        count, grain,
        [](void* context, int64_t begin, int64_t end, int worker) {
          (*static_cast<Plain*>(context))(begin, end, worker);
        },
        const_cast<void*>(static_cast<const void*>(&work)));
  }

  // kWorkerScratchBytes of 64-byte aligned memory that belongs to `worker` during one piece.
  template <typename T>
  T* scratch(int worker) const {
    return scratch_[worker].as<T>();
  }

 private:
  using Erased = void (*)(void* context, int64_t begin, int64_t end, int worker);
  struct Task {
    Erased work = nullptr;
    void* context = nullptr;
    int64_t count = 0, grain = 1;
  };

  void run_erased(int64_t count, int64_t grain, Erased work, void* context);
  void worker_loop(int worker);
  void drain(const Task& task, int worker);

  std::vector<Buffer> scratch_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  Task task_;  // written while running_ == 0, read by workers after they see the new generation
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
};

}  // namespace qn
