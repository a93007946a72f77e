// Eight neighbouring columns of a weight in any storage, decoded to f32. For .cu files alone.
#pragma once

#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/bf16x8_cuda.h"
#include "ops/bnb4_cuda.h"
#include "ops/weight_view.h"

namespace qn {

// Eight columns of a packed row: code · scale has at most 6 significant bits, so only the global scale rounds.
__device__ inline Eight packed_eight(const Nvfp4View& view, int64_t first) {
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(view.codes + first / 2);
  const float scale = e4m3_to_f32(view.scales[first / kBlockSize]);
  Eight out;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) out.value[i] = e2m1_to_f32(codes >> (4 * i)) * scale * view.global_scale;
  return out;
}

__device__ inline Eight bnb4_eight(const Bnb4View& view, int64_t first) {
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(view.codes + first / 2);
  const float absmax = view.absmax[first / kBnb4BlockSize];
  Eight out;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) out.value[i] = bnb4_value(view.codebook, codes >> (4 * i) & 15u) * absmax;
  return out;
}

template <Storage storage>
__device__ inline Eight weight_eight(const WeightView& w, int64_t first) {
  if constexpr (storage == Storage::kF32) {
    return load8(static_cast<const float*>(w.dense) + first);
  } else if constexpr (storage == Storage::kBF16) {
    return load8(static_cast<const uint16_t*>(w.dense) + first);
  } else if constexpr (storage == Storage::kF16) {
    union {
      uint4 bits;
      uint16_t value[kLaneValues];
    } halves;
    halves.bits = load_bits8(static_cast<const uint16_t*>(w.dense) + first);
    Eight out;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) out.value[i] = f16_to_f32(halves.value[i]);
    return out;
  } else if constexpr (storage == Storage::kBnb4) {
    return bnb4_eight(w.bnb4, first);
  } else {
    Eight out = packed_eight(w.packed, first);
    if (w.residual.codes) {
      const Eight residual = packed_eight(w.residual, first);
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) out.value[i] += residual.value[i];
    }
    return out;
  }
}

}  // namespace qn
