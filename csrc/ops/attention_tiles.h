// The arithmetic of attention on one tile: packed rows of queries against packed keys. One table of functions per
// instruction set; the loops over tiles (attention_cpu.cpp, attention_backward_cpu.cpp) are shared by all of them.
//
// Packed rows are f32, 64-byte aligned, and padded with zeros to a multiple of kLane, so that no kernel has a tail.
// This header is included by files compiled for AVX2, AVX-512 and NEON: it must not use inline library functions.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace qn {

constexpr int64_t kKeyTile = 64;   // keys of a tile
constexpr int64_t kRowTile = 128;  // rows (query, head) of a tile; the heads of a group share its keys
constexpr int64_t kLane = 16;

// c[rows, columns] = or += a · b, with a(r, i) = a.data[r · a.row + i · a.column] and b [depth, columns].
// columns % kLane == 0. Each element is one f32 sum in ascending order of depth.
struct TileProduct {
  struct {
    float* data;
    int64_t stride;
  } c;
  struct {
    const float* data;
    int64_t row, column;
  } a;
  struct {
    const void* data;
    int64_t stride;
    DType dtype = DType::kF32;  // kernels with `dot` also take kF16 and kBF16
    bool far = false;           // in memory rather than in a cache level: worth asking for ahead of use
  } b;
  int64_t rows, columns, depth;
  bool add;
};

// s[rows, keys] of row stride kKeyTile = q · kᵀ straight from the cache. D % kLane == 0.
struct TileDot {
  float* s;
  const float* q;
  const void* k;
  DType k_dtype;
  int64_t q_stride, k_stride;
  int64_t rows, keys, D;
};

struct AttentionKernels {
  void (*product)(const TileProduct& args);

  // to[D, kKeyTile] = from[kKeyTile, stride]ᵀ for the first `keys` (a multiple of kLane) and D (likewise).
  void (*transpose)(float* to, const float* from, int64_t stride, int64_t keys, int64_t D);

  // count f16 or bf16 values to f32. Any count.
  void (*widen)(float* to, const void* from, DType dtype, int64_t count);

  // One row of an online softmax: s = exp((s − max') scale), max' = max(max, s…), sum = sum · factor + Σ s, and returns
  // factor = exp((max − max') scale), by which what was summed before has to shrink. −inf is a key that is not seen.
  float (*softmax)(float* s, int64_t count, float scale, float* max, float* sum);

  // One row of the backward pass: p = exp(s scale − lse), ds = p (dp − delta) scale; s becomes p, dp becomes ds.
  void (*gradient)(float* s, float* dp, int64_t count, float scale, float lse, float delta);

  // y = exp(x) as the kernels compute it, for x ≤ 88; count % kLane == 0.
  void (*exp)(float* y, const float* x, int64_t count);

  // Few rows against many keys, bound by memory: no packing. Null where keys are always packed.
  void (*dot)(const TileDot& args);
};

const AttentionKernels& attention_kernels_portable();
const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();
const AttentionKernels& attention_kernels_neon();

}  // namespace qn
