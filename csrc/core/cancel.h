// A flag that JavaScript sets (AbortSignal) and long jobs poll between layers, chunks and tokens.
#pragma once

#include <atomic>

#include "core/status.h"

namespace qn {

class CancelToken {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  void throw_if_cancelled() const {
    if (cancelled()) fail(Code::kAborted, "the operation was aborted");
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace qn
