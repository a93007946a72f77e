// How long launches take on the device when no host stands between them, for benchmarks. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <functional>

#include "core/cuda_device.h"

namespace qn {

// Microseconds per call of launch(i, stream): calls 0 .. launches − 1 are captured into one CUDA graph, which runs once
// to warm up and then `replays` times; the fastest replay counts. Includes the gap between two kernels of a graph.
double cuda_graph_microseconds(int64_t launches, int64_t replays,
                               const std::function<void(int64_t, CudaStream)>& launch);

// Starts a copy between two places on the device.
void cuda_copy(void* to, const void* from, int64_t bytes, CudaStream stream);

}  // namespace qn
