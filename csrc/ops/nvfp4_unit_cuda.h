// What a warp copies and multiplies at a time of packed NVFP4 weights and one x: rows by columns of one weight, in
// shared memory. For .cu files alone.
#pragma once

#include <cstdint>

#include "ops/e2m1_mma_cuda.h"
#include "ops/group_reduce_cuda.h"

namespace qn {

// One token: sums are of e2m1 · kE2M1Unit, e4m3 · kE4M3Unit and x · 2^64, so that neither codes nor their products with
// small x leave the normal numbers. The store repays.
constexpr float kXScale = 0x1p64f;
constexpr float kTokenSumScale = 1.0f / kXScale / kE2M1Unit / kE4M3Unit;

__device__ __forceinline__ uint32_t scale_x(uint32_t pair) { return multiply_bf16x2(pair, 0x5f805f80u); }

// A unit is kRows rows of a tile of 128 · kChunks columns: what a warp copies and multiplies at a time. In shared
// memory: codes, row by row, the 16-byte pieces of a row permuted so that the lanes of a read touch all banks; then
// scales, row by row. Lane 4g + q multiplies columns [q, q + 1) · 32 · kChunks of row g (and g + 8).
template <int kTileRows, int kChunkCount>
struct UnitOf {
  static constexpr int kRows = kTileRows;
  static constexpr int kChunks = kChunkCount;
  static constexpr int kColumns = 128 * kChunks;
  static constexpr int kRowBytes = kColumns / 2, kRowScales = kColumns / 16;
  static constexpr int kScalesAt = kRows * kRowBytes;
  static constexpr int kBytes = kScalesAt + kRows * kRowScales;
  static constexpr int kRowLanes = kRowBytes / 16;     // that copy a row of codes
  static constexpr int kCopyRows = 32 / kRowLanes;     // of one copy of the warp
  static constexpr int kScaleLanes = kRowScales / 16;  // that copy a row of scales
  static constexpr int kXBytes = kColumns * 2;         // of one token
  static_assert((kChunks == 2 || kChunks == 4) && (kRows == 8 || kRows == 16));

  // Of one row, pieces j of kChunks that follow a multiple of them are at the first's place ^ 16 · j.
  static __device__ __forceinline__ int piece_at(int row, int piece) {
    const int moved = kChunks == 4 ? piece ^ (piece >> 3 & 1) ^ ((row & 1) << 1) : piece ^ (row & 1);
    return row * kRowBytes + moved * 16;
  }
};

// Where an eight of columns goes in staged x of one token, and its second half 16 bytes further: x is the operand b of
// multiply_tiles, where lane 4g + q multiplies with column g of b, of which columns 2q and 2q + 1 belong to the lanes
// q: they hold code pairs (0, 4), (1, 5) and (2, 6), (3, 7) of eight columns of x; the other lanes of q read zeros. Of
// each piece of 32 columns, half i holds eights 2i and 2i + 1: [unit][piece of a lane j][half i][q][column of b, 2q +
// h] 16 bytes, so that the eight lanes read 128 in a row.
template <typename Unit>
__device__ __forceinline__ int token_eight_at(int eight) {
  const int word = eight % 4, piece = eight / 4;
  const int j = piece % Unit::kChunks, q = piece / Unit::kChunks % 4, unit = piece / Unit::kChunks / 4;
  return (((unit * Unit::kChunks + j) * 2 + word / 2) * 8 + q * 2) * 16 + word % 2 * 8;
}

// What lanes without a column of b read: columns of a unit, in banks that the others do not read.
template <typename Unit>
constexpr int kZeroBytes = Unit::kXBytes + 128;

// The unit's sum for one token and the lane's row, over all lanes of the row. `x` is the lane's place in the staged
// unit.
template <typename Unit>
__device__ __forceinline__ float multiply_token(const uint4 (&codes)[Unit::kChunks],
                                                const uint32_t (&scales)[Unit::kChunks / 2], const uint8_t* x) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < Unit::kChunks; ++j) {
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

}  // namespace qn
