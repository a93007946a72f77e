// What a warp of gemv.cu's kernel multiplies at a time: a unit of packed weights by staged x, both in shared memory.
// For .cu files alone.
#pragma once

#include <cstdint>

#include "ops/async_cuda.h"
#include "ops/e2m1_mma_cuda.h"
#include "ops/gemv_plan.h"
#include "ops/group_reduce_cuda.h"

namespace qn::gemv {

// One token: sums are of e2m1 · kE2M1Unit, e4m3 · kE4M3Unit and x · 2^64, so that neither codes nor their products with
// small x leave the normal numbers. The store repays.
constexpr float kXScale = 0x1p64f;
constexpr float kTokenSumScale = 1.0f / kXScale / kE2M1Unit / kE4M3Unit;
// Several: of x and weights · kWeightUnit.
constexpr float kTokensSumScale = 1.0f / kWeightUnit;

__device__ __forceinline__ uint32_t scale_x(uint32_t pair) { return multiply_bf16x2(pair, 0x5f805f80u); }

constexpr int kLanePieces = 4;  // of 32 columns, of a lane and unit

// A unit in shared memory: codes, row by row, the 16-byte pieces of a row permuted so that the lanes of a read touch
// all banks; then scales, row by row. Lane 4g + q multiplies columns [q, q + 1) · 128 of row g (and g + 8).
template <int kTileRows>
struct UnitOf {
  static constexpr int kRows = kTileRows;
  static constexpr int kScalesAt = kRows * kUnitRowBytes;
  static constexpr int kBytes = kScalesAt + kRows * kUnitRowScales;
  static constexpr int kRowLanes = kUnitRowBytes / 16;     // that copy a row of codes
  static constexpr int kCopyRows = 32 / kRowLanes;         // of one copy of the warp
  static constexpr int kScaleLanes = kUnitRowScales / 16;  // that copy a row of scales

  // Of one row, pieces j of kLanePieces that follow a multiple of them are at the first's place ^ 16 · j.
  static __device__ __forceinline__ int piece_at(int row, int piece) {
    return row * kUnitRowBytes + (piece ^ (piece >> 3 & 1) ^ ((row & 1) << 1)) * 16;
  }
};

// Where an eight of columns goes in staged x of one token, and its second half 16 bytes further: x is the operand b of
// multiply_tiles, where lane 4g + q multiplies with column g of b, of which columns 2q and 2q + 1 belong to the lanes
// q: they hold code pairs (0, 4), (1, 5) and (2, 6), (3, 7) of eight columns of x; the other lanes of q read zeros. Of
// each piece of 32 columns, half i holds eights 2i and 2i + 1: [unit][piece of a lane j][half i][q][column of b, 2q +
// h] 16 bytes, so that the eight lanes read 128 in a row.
__device__ __forceinline__ int token_eight_at(int eight) {
  const int word = eight % 4, piece = eight / 4;
  const int j = piece % kLanePieces, q = piece / kLanePieces % 4, unit = piece / kLanePieces / 4;
  return (((unit * kLanePieces + j) * 2 + word / 2) * 8 + q * 2) * 16 + word % 2 * 8;
}

// The unit's sum for one token and the lane's row, over all lanes of the row. `x` is the lane's place in the staged
// unit.
__device__ __forceinline__ float multiply_token(const uint4 (&codes)[kLanePieces],
                                                const uint32_t (&scales)[kLanePieces / 2], const uint8_t* x) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kLanePieces; ++j) {
    const float2 scale = j % 2 == 0 ? decode_e4m3x2<0>(scales[j / 2]) : decode_e4m3x2<2>(scales[j / 2]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 low = e2m1x8_to_bf16(half == 0 ? codes[j].x : codes[j].z);
      const uint4 high = e2m1x8_to_bf16(half == 0 ? codes[j].y : codes[j].w);
      const uint4 b = *reinterpret_cast<const uint4*>(x + (j * 2 + half) * 128);
      // Rows g of a are pairs (0, 4), (1, 5) for column 2q of b, rows g + 8 the others for column 2q + 1.
      float4 product = multiply_tiles({low.x, low.z, low.y, low.w}, {b.x, b.y}, {0, 0, 0, 0});
      product = multiply_tiles({high.x, high.z, high.y, high.w}, {b.z, b.w}, product);
      sum = fmaf(product.x + product.w, half == 0 ? scale.x : scale.y, sum);
    }
  }
  return reduce_lanes<4>(sum, AddLanes{});
}

// The unit's sums for tokens 2q, 2q + 1 and rows g, g + 8 of lane 4g + q: {(g, 2q), (g, 2q + 1), (g + 8, 2q), …}. `x`
// is the lane's place in the staged unit, `word_bytes` from one eight of columns to the next.
template <typename Unit>
__device__ __forceinline__ float4 multiply_tokens(uint32_t unit, const uint8_t* x, int word_bytes, int g, int q) {
  float4 sums[2] = {};  // two chains, so that a product need not wait for the one before
  const uint32_t scales = unit + Unit::kScalesAt + g * kUnitRowScales + q * 2 * kLanePieces;
  const uint32_t codes = unit + Unit::piece_at(g, q * kLanePieces);
#pragma unroll
  for (int j = 0; j < kLanePieces; ++j) {
    const uint4 top = load_shared16(codes ^ (j * 16)), bottom = load_shared16((codes ^ (j * 16)) + 8 * kUnitRowBytes);
    const uint32_t top_scales = load_shared4(scales + j / 2 * 4) >> (j % 2 * 16);
    const uint32_t bottom_scales = load_shared4(scales + j / 2 * 4 + 8 * kUnitRowScales) >> (j % 2 * 16);
    const uint32_t top_pair = e4m3_to_bf16x2(__byte_perm(top_scales, 0, 0x4140));
    const uint32_t bottom_pair = e4m3_to_bf16x2(__byte_perm(bottom_scales, 0, 0x4140));
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const auto of = [&](const uint4& v) { return word == 0 ? v.x : word == 1 ? v.y : word == 2 ? v.z : v.w; };
      const uint32_t both = word < 2 ? 0x1010 : 0x3232;
      const uint4 a = multiply_bf16x8(e2m1x8_to_bf16(of(top)), __byte_perm(top_pair, 0, both));
      const uint4 c = multiply_bf16x8(e2m1x8_to_bf16(of(bottom)), __byte_perm(bottom_pair, 0, both));
      const uint4 b = *reinterpret_cast<const uint4*>(x + (j * 4 + word) * word_bytes);
      sums[0] = multiply_tiles({a.x, c.x, a.y, c.y}, {b.x, b.y}, sums[0]);
      sums[1] = multiply_tiles({a.z, c.z, a.w, c.w}, {b.z, b.w}, sums[1]);
    }
  }
  return {sums[0].x + sums[1].x, sums[0].y + sums[1].y, sums[0].z + sums[1].z, sums[0].w + sums[1].w};
}

}  // namespace qn::gemv
