// What the memory of a GPU holds, all processes together: needs no model and no device of ours.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/nvml.h"

namespace qn {

struct GpuMemoryReading {
  bool unified = false;  // the GPU's memory is the host's
  NvmlReading memory;    // where neither can be read, `reason` says why
};

// Without `open_context` NVML is asked, and no GPU memory is taken; with it cudaMemGetInfo, whose context stays with
// this process and takes some hundred MiB. Throws Error(kCudaUnavailable) when there is no such GPU.
GpuMemoryReading read_gpu_memory(int index, bool open_context);

}  // namespace qn
