// The least work that reads every byte on CUDA, to measure the device's read bandwidth with.
#pragma once

#include <cstdint>

#include "core/cuda_device.h"

namespace qn {

#if defined(QN_WITH_CUDA)
// *out = 1 when all 32-bit words of data, bytes % 16 == 0 of them, 16-byte aligned, combine to one value that random
// data practically never has; else *out stays. For benchmarks alone.
void read_words_cuda(uint32_t* out, const void* data, int64_t bytes, CudaStream stream);
#endif

}  // namespace qn
