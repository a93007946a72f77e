// What NVIDIA's management library says of a GPU. It makes no CUDA context, so asking costs none of the GPU's memory.
// The library is opened at the first call: libnvidia-ml.so.1, or the file that QN_NVML names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace qn {

struct GpuProcess {
  int64_t pid;    // as the host counts: within a container it is another process's
  int64_t bytes;  // of the GPU
};

struct NvmlReading {
  struct Bytes {
    int64_t free, total;
  };
  std::optional<Bytes> gpu;                          // of the whole GPU, all processes
  std::optional<std::vector<GpuProcess>> processes;  // those that compute; only where each one's bytes are known
  std::string reason;                                // why something above is missing; else empty
};

// `pci_bus_id` as cudaDeviceGetPCIBusId writes it. A GPU that is split by MIG is not read: what NVML says is of all of
// its parts. Throws Error(kUnsupported) when the library cannot be used, with what was tried.
NvmlReading read_nvml(const std::string& pci_bus_id);

}  // namespace qn
