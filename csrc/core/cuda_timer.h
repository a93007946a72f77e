// How long launches take on the device, for benchmarks. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <functional>

namespace qn {

// Microseconds per call of launch(i), which launches on the default stream: calls 0 .. iterations − 1 between two CUDA
// events, after two calls that warm up. Waits for the device.
double cuda_microseconds(int64_t iterations, const std::function<void(int64_t)>& launch);

// Starts a copy between two places on the device, on the default stream.
void cuda_copy(void* to, const void* from, int64_t bytes);

}  // namespace qn
