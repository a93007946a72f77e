#include "core/cuda_graph.h"

#include <utility>

#include "core/cuda_check.h"
#include "core/status.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

void CudaGraph::swap(CudaGraph& other) noexcept {
  std::swap(executable_, other.executable_);
  std::swap(stream_, other.stream_);
}

#if defined(QN_WITH_CUDA)

CudaGraph::CudaGraph(CudaContext& context, const std::function<void()>& work) : stream_(context.stream()) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  cudaGraph_t graph = nullptr;
  QN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    // The stream must leave its recording state; the error that broke it is the one to report.
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  QN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  if (status != cudaSuccess) cuda_fail(status, "cudaGraphInstantiate", __FILE__, __LINE__);
  executable_ = executable;
}

CudaGraph::~CudaGraph() {
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void CudaGraph::launch() const {
  QN_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), static_cast<cudaStream_t>(stream_)));
}

#else

CudaGraph::CudaGraph(CudaContext&, const std::function<void()>&) { require_cuda(); }
CudaGraph::~CudaGraph() = default;
void CudaGraph::launch() const {}

#endif

}  // namespace qn
