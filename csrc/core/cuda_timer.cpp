#include "core/cuda_timer.h"

#include "core/cuda_check.h"
#include "core/cuda_device.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

#if defined(QN_WITH_CUDA)

namespace {

struct Event {
  cudaEvent_t event = nullptr;
  Event() { QN_CUDA_CHECK(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

}  // namespace

double cuda_microseconds(int64_t iterations, const std::function<void(int64_t)>& launch) {
  const Event start, end;
  for (int64_t i = 0; i < 2; ++i) launch(i);
  QN_CUDA_CHECK(cudaEventRecord(start.event));
  for (int64_t i = 0; i < iterations; ++i) launch(i);
  QN_CUDA_CHECK(cudaEventRecord(end.event));
  QN_CUDA_CHECK(cudaEventSynchronize(end.event));
  float milliseconds = 0;
  QN_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event, end.event));
  return 1e3 * milliseconds / static_cast<double>(iterations);
}

void cuda_copy(void* to, const void* from, int64_t bytes) {
  QN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice));
}

#else

double cuda_microseconds(int64_t, const std::function<void(int64_t)>&) {
  require_cuda();
  return 0;
}
void cuda_copy(void*, const void*, int64_t) { require_cuda(); }

#endif

}  // namespace qn
