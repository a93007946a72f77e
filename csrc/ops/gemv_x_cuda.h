// How a block of gemv.cu's kernel brings x to shared memory, normalised or not. For .cu files alone.
#pragma once

#include "ops/bf16x8_cuda.h"
#include "ops/gemv_kernel_cuda.h"
#include "ops/group_reduce_cuda.h"

namespace qn::gemv {

constexpr int kNormVectors = 4;  // of eight columns, at most, of a lane: rows of up to 16,384

// RMSNorm of rows of x, to the bits of rms_norm_kernel (rms_norm.cu), with which this must stay in step: lane l of the
// row's norm_lanes sums the squares of vectors l, l + norm_lanes, … of eight columns; here 32 of them are a warp's
// item.
struct NormItem {
  uint4 bits[kNormVectors];

  __device__ __forceinline__ void load(const Kernel& p, int item, int lane) {
    const int row_warps = p.norm_lanes / 32, token = item / row_warps;
    const int first = item % row_warps * 32 + lane, vectors = token < p.T ? p.K / kLaneValues : 0;
#pragma unroll
    for (int i = 0; i < kNormVectors; ++i) {
      const int v = first + i * p.norm_lanes;
      bits[i] = {0, 0, 0, 0};  // adds nothing to a sum of squares
      if (v < vectors) bits[i] = load_bits8(p.x + int64_t{token} * p.K + v * kLaneValues);
    }
  }
  __device__ __forceinline__ float sum_squares() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kNormVectors; ++i) {
      const Eight eight = bf16x8_to_f32(bits[i]);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) sum = fmaf(eight.value[j], eight.value[j], sum);
    }
    return reduce_lanes<32>(sum, AddLanes{});
  }
};

__device__ __forceinline__ float inverse_rms(const float* sums, const Kernel& p, int lane) {
  const int row_warps = p.norm_lanes / 32;
  float sum = sums[lane % row_warps];
  for (int step = row_warps / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return 1.0f / sqrtf(sum / static_cast<float>(p.K) + p.norm_eps);
}

__device__ __forceinline__ uint4 normalised(uint4 bits, float inverse, const Eight& weight) {
  Eight eight = bf16x8_to_f32(bits);
#pragma unroll
  for (int j = 0; j < kLaneValues; ++j) eight.value[j] = eight.value[j] * inverse * weight.value[j];
  return f32_to_bf16x8(eight);
}

// Pairs (0, 4), (1, 5), (2, 6), (3, 7) of eight columns, as decoded codes have them.
__device__ __forceinline__ uint4 paired(uint4 v) {
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
          __byte_perm(v.y, v.w, 0x7632)};
}

// Eight columns of x in shared memory. One token: token_eight_at. Several: [unit][piece of a lane j][eight][token][q]
// 16 bytes, and lane 4g + q reads token g's.
template <typename Layout>
__device__ __forceinline__ void stage_eight(uint8_t* staged, const Kernel& p, int token, int at, uint4 bits) {
  const uint4 v = paired(bits);
  if constexpr (Layout::kOneToken) {
    uint8_t* const to = staged + token_eight_at(at);
    *reinterpret_cast<uint2*>(to) = {scale_x(v.x), scale_x(v.y)};
    *reinterpret_cast<uint2*>(to + 16) = {scale_x(v.z), scale_x(v.w)};
  } else {
    const int word = at % 4, piece = at / 4;
    const int j = piece % kLanePieces, q = piece / kLanePieces % 4, unit = piece / kLanePieces / 4;
    *reinterpret_cast<uint4*>(staged + ((((unit * kLanePieces + j) * 4 + word) * p.T + token) * 4 + q) * 16) = v;
  }
}

constexpr int kAhead = 3;  // eights of x that a thread loads before they are waited for

// Stages all of x, normalised or not. The first eights of a single token may have been loaded ahead.
template <typename Layout>
__device__ __forceinline__ void stage_x(uint8_t* staged, const float (*norm_sums)[kNormWarps], const Kernel& p,
                                        const uint4 (&ahead)[kAhead], const Eight& norm_ahead, int lane) {
  const int eights = p.units * (kUnitColumns / 8), inside = p.K / 8, thread = static_cast<int>(threadIdx.x);
  for (int token = 0; token < (Layout::kOneToken ? 1 : p.T); ++token) {
    const float inverse = p.norm ? inverse_rms(norm_sums[token], p, lane) : 0.0f;
    const auto stage = [&](int at, uint4 bits, const Eight& weight) {
      stage_eight<Layout>(staged, p, token, at, p.norm && at < inside ? normalised(bits, inverse, weight) : bits);
    };
    int at = thread;
    if constexpr (Layout::kOneToken) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (at < eights) {
          Eight weight = norm_ahead;
          if (i > 0 && p.norm && at < inside) weight = load8(p.norm + at * 8);
          stage(at, ahead[i], weight);
        }
        at += Layout::kThreads;
      }
    }
#pragma unroll 1
    for (; at < eights; at += Layout::kThreads) {
      uint4 bits{0, 0, 0, 0};
      Eight weight{};
      if (at < inside) {
        bits = load_bits8(p.x + int64_t{token} * p.K + at * 8);
        if (p.norm) weight = load8(p.norm + at * 8);
      }
      stage(at, bits, weight);
    }
  }
}

}  // namespace qn::gemv
