#include "core/cuda_graph_timer.h"

#include <algorithm>
#include <limits>

#include "core/cuda_check.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

#if defined(QN_WITH_CUDA)

namespace {

// What a capture needs, freed in any case.
struct Capture {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t start = nullptr, end = nullptr;
  Capture() {
    QN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    QN_CUDA_CHECK(cudaEventCreate(&start));
    QN_CUDA_CHECK(cudaEventCreate(&end));
  }
  ~Capture() {
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    if (start) cudaEventDestroy(start);
    if (end) cudaEventDestroy(end);
    if (stream) cudaStreamDestroy(stream);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
};

}  // namespace

double cuda_graph_microseconds(int64_t launches, int64_t replays,
                               const std::function<void(int64_t, CudaStream)>& launch) {
  QN_CUDA_CHECK(cudaDeviceSynchronize());  // what the caller prepared on the default stream
  Capture capture;
  launch(0, capture.stream);  // loads the kernels, and makes cuBLASLt choose, outside the capture
  QN_CUDA_CHECK(cudaStreamSynchronize(capture.stream));
  QN_CUDA_CHECK(cudaStreamBeginCapture(capture.stream, cudaStreamCaptureModeThreadLocal));
  for (int64_t i = 0; i < launches; ++i) launch(i, capture.stream);
  QN_CUDA_CHECK(cudaStreamEndCapture(capture.stream, &capture.graph));
  QN_CUDA_CHECK(cudaGraphInstantiate(&capture.exec, capture.graph, 0));
  float best = std::numeric_limits<float>::infinity();
  for (int64_t replay = -1; replay < replays; ++replay) {
    QN_CUDA_CHECK(cudaEventRecord(capture.start, capture.stream));
    QN_CUDA_CHECK(cudaGraphLaunch(capture.exec, capture.stream));
    QN_CUDA_CHECK(cudaEventRecord(capture.end, capture.stream));
    QN_CUDA_CHECK(cudaEventSynchronize(capture.end));
    float milliseconds = 0;
    QN_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, capture.start, capture.end));
    if (replay >= 0) best = std::min(best, milliseconds);
  }
  return 1e3 * best / static_cast<double>(launches);
}

void cuda_copy(void* to, const void* from, int64_t bytes, CudaStream stream) {
  QN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                                static_cast<cudaStream_t>(stream)));
}

#else

double cuda_graph_microseconds(int64_t, int64_t, const std::function<void(int64_t, CudaStream)>&) {
  require_cuda();
  return 0;
}
void cuda_copy(void*, const void*, int64_t, CudaStream) { require_cuda(); }

#endif

}  // namespace qn
