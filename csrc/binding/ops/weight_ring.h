// Random weights on device 0, for benchmarks.
#pragma once

#include "binding/ops/cuda_ops.h"

namespace qn {

// `count` distinct weights w[N, K] on the device.
struct WeightRing {
  int64_t N, K;
  CudaBuffer codes, scales;

  WeightRing(int64_t rows, int64_t cols, int64_t count)
      : N(rows),
        K(cols),
        codes(random_bytes(count * rows * cols / 2, 0, 256)),
        scales(random_bytes(count * rows * cols / 16, 0x28, 0x15)) {}
  // Rows [begin, …) of the i-th.
  Nvfp4View at(int64_t i, int64_t begin) const {
    const int64_t from = (i * N + begin) * K;
    return {codes.as<uint8_t>() + from / 2, scales.as<uint8_t>() + from / 16, 1e-2f};
  }
};

inline CudaBuffer ones(int64_t count) {
  const std::vector<float> values(static_cast<size_t>(count), 1.0f);
  return on_device(values.data(), count * 4);
}

}  // namespace qn
