#include "core/gpu_memory.h"

#include "core/cuda_check.h"
#include "core/cuda_device.h"
#include "core/status.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

#if defined(QN_WITH_CUDA)

GpuMemoryReading read_gpu_memory(int index, bool open_context) {
  require_cuda(index);
  GpuMemoryReading reading;
  int integrated = 0;
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, index));
  reading.unified = integrated != 0;
  if (open_context) {
    size_t available = 0, total = 0;
    QN_CUDA_CHECK(cudaSetDevice(index));
    QN_CUDA_CHECK(cudaMemGetInfo(&available, &total));
    reading.memory.gpu = {static_cast<int64_t>(available), static_cast<int64_t>(total)};
    return reading;
  }
  char bus[32] = "";
  QN_CUDA_CHECK(cudaDeviceGetPCIBusId(bus, sizeof bus, index));
  try {
    reading.memory = read_nvml(bus);
  } catch (const Error& error) {
    reading.memory.reason = error.what();
  }
  return reading;
}

#else

GpuMemoryReading read_gpu_memory(int index, bool) {
  require_cuda(index);
  return {};
}

#endif

}  // namespace qn
