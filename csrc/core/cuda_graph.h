// A sequence of launches that is recorded once and replayed as one. Needs no CUDA header.
#pragma once

#include <functional>

#include "core/cuda_context.h"

namespace qn {

class CudaGraph {
 public:
  CudaGraph() = default;
  // Records what `work` launches on the context's stream, without running it. `work` must not allocate, free, copy from
  // pageable memory or wait.
  CudaGraph(CudaContext& context, const std::function<void()>& work);
  ~CudaGraph();
  CudaGraph(CudaGraph&& other) noexcept { swap(other); }
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    swap(other);
    return *this;
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  explicit operator bool() const { return executable_ != nullptr; }
  // On the stream it was recorded on.
  void launch() const;

 private:
  void swap(CudaGraph& other) noexcept;

  void* executable_ = nullptr;
  CudaStream stream_ = nullptr;
};

}  // namespace qn
