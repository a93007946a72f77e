// Longer than most, because the kernel, the choice of its layout and the layout itself must be read together.
#include "ops/gemv.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/async_cuda.h"
#include "ops/bf16x8_cuda.h"
#include "ops/e2m1_mma_cuda.h"
#include "ops/group_reduce_cuda.h"
#include "ops/nvfp4_unit_cuda.h"
#include "ops/swiglu_cuda.h"

namespace qn {

namespace {

constexpr int kNormWarps = 16;   // at most, of a row's sum of squares
constexpr int kNormVectors = 4;  // of eight columns, at most, of a lane: rows of up to 16,384

// Sums of several tokens are of x and weights · kWeightUnit.
constexpr float kTokensSumScale = 1.0f / kWeightUnit;

struct Plane {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  float scale = 0;  // of a sum
};

// Its outputs are dealt to blocks: the first `longer` blocks have outputs_per_block + 1.
struct Matrix {
  Plane planes[2];  // packed; residual, or with scale 0 the packed part again
  uint8_t* y = nullptr;
  int64_t y_stride = 0;
  int blocks_end = 0;  // blocks of this matrix and those before
  int outputs_per_block = 0, longer = 0;
};

// Outputs are rows of one y: a block has neighbouring ones of one matrix, or with swiglu of gate and up: then row 2i of
// its tiles is row i of gate and 2i + 1 row i of up.
struct Kernel {
  Matrix matrices[kGemvMatrices];
  const uint16_t* x;
  const float* norm;
  float norm_eps;
  int norm_lanes;  // 32, 128 or 512: the group of rms_norm_cuda for such a row
  int T, K;
  int units;                   // of a row in one plane
  int tile_units;              // of a row in all planes
  int step_tiles, step_units;  // kWarps units further
  bool y_f32, accumulate, swiglu;
  bool fill_early;  // weights are fetched before the previous kernel is waited for
  GemvTrigger trigger;
};

// What is compiled apart. One token takes eight rows at a time with two blocks resident where they overlap; several
// take sixteen, which the tensor cores multiply by up to eight tokens at no further cost.
template <bool kOne, int kWarpCount, int kStageCount, int kChunkCount, bool kWithResidual, bool kWholeUnits>
struct LayoutOf {
  static constexpr bool kOneToken = kOne;
  static constexpr int kWarps = kWarpCount, kThreads = 32 * kWarps;
  static constexpr int kStages = kStageCount;       // units in flight a warp
  static constexpr bool kResidual = kWithResidual;  // whether there are two planes
  static constexpr bool kWhole = kWholeUnits;       // whether rows end with a unit
  using Unit = UnitOf<kOne ? 8 : 16, kChunkCount>;
};

// The block's part of the outputs.
struct Part {
  int matrix;
  int first, outputs;  // rows of y
  int rows;            // of weights

  __device__ explicit Part(const Kernel& p) {
    int block = static_cast<int>(blockIdx.x);
    matrix = (block >= p.matrices[0].blocks_end ? 1 : 0) + (block >= p.matrices[1].blocks_end ? 1 : 0);
    if (matrix > 0) block -= p.matrices[matrix - 1].blocks_end;
    const Matrix& m = p.matrices[matrix];
    first = block * m.outputs_per_block + min(block, m.longer);
    outputs = m.outputs_per_block + (block < m.longer ? 1 : 0);
    rows = p.swiglu ? 2 * outputs : outputs;
  }
};

// Where a row does not end at a unit: 16 codes and a scale at a time, through registers. Columns past K are zeros. The
// tile is that from which `left` rows of the block are left.
template <typename Unit>
__device__ __noinline__ void copy_ragged(const Kernel& p, const Part& part, uint32_t slot, int left, int k, int lane) {
  auto* const to = static_cast<uint8_t*>(__cvta_shared_to_generic(slot));
  const int plane = k >= p.units ? 1 : 0, column = (k - plane * p.units) * Unit::kColumns;
  for (int block = lane; block < Unit::kRows * Unit::kRowScales; block += 32) {
    const int inside = block / Unit::kRowScales, at = block % Unit::kRowScales, row = part.rows - left + inside;
    const Plane& w = p.matrices[p.swiglu ? inside % 2 : part.matrix].planes[plane];
    uint2 codes{0, 0};
    uint8_t scale = 0;
    if (inside < left && column + at * 16 < p.K) {
      const int64_t offset = int64_t{part.first + (p.swiglu ? row / 2 : row)} * p.K + column + at * 16;
      codes = *reinterpret_cast<const uint2*>(w.codes + offset / 2);
      scale = w.scales[offset / 16];
    }
    *reinterpret_cast<uint2*>(to + Unit::piece_at(inside, at / 2) + at % 2 * 8) = codes;
    to[Unit::kScalesAt + inside * Unit::kRowScales + at] = scale;
  }
}

// The ring of a warp: which unit of the block it copies next, and what this lane copies of each. Units are numbered
// tile by tile, in a tile by columns, packed before residual; those of a warp are kWarps apart.
template <typename Layout>
struct Ring {
  using Unit = typename Layout::Unit;
  int k;            // the unit's place in its tile
  int left;         // rows of the block from its tile on; none: no unit is left
  uint32_t offset;  // of its codes from the lane's first ones
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t residual_codes, residual_scales;  // from those to the residual's
  uint32_t slots;                           // in shared memory
  uint32_t copy_step;                       // bytes between two copies' rows
  uint32_t step_offset, wrap_offset;

  __device__ Ring(const Kernel& p, const Part& part, const uint8_t* ring, int warp, int lane) {
    slots = shared_address(ring + warp * (Layout::kStages * Unit::kBytes));
    const int pairs = p.swiglu ? 2 : 1, row_bytes = p.K / 2;
    const uint32_t tile_bytes = Unit::kRows / pairs * row_bytes;
    k = warp;
    left = part.rows;
    offset = 0;
    for (; k >= p.tile_units; k -= p.tile_units) {
      left -= Unit::kRows;
      offset += tile_bytes;
    }
    offset += k * Unit::kRowBytes;
    step_offset = p.step_tiles * tile_bytes + p.step_units * Unit::kRowBytes;
    wrap_offset = tile_bytes - p.tile_units * Unit::kRowBytes;

    const int row = lane / Unit::kRowLanes, scales_row = lane / Unit::kScaleLanes;  // of a tile
    const Matrix& of_codes = p.matrices[p.swiglu ? row % 2 : part.matrix];
    const Matrix& of_scales = p.matrices[p.swiglu ? scales_row % 2 : part.matrix];
    codes = of_codes.planes[0].codes + (int64_t{part.first + row / pairs} * row_bytes + lane % Unit::kRowLanes * 16);
    scales = of_scales.planes[0].scales +
             (int64_t{part.first + scales_row / pairs} * (row_bytes / 8) + lane % Unit::kScaleLanes * 16);
    copy_step = Unit::kCopyRows / pairs * row_bytes;
    // Else the compiler keeps the summands of each in registers, which are short.
    asm("" : "+l"(codes), "+l"(scales));
    if (Layout::kResidual) {
      residual_codes = of_codes.planes[1].codes - of_codes.planes[0].codes - p.units * Unit::kRowBytes;
      residual_scales = of_scales.planes[1].scales - of_scales.planes[0].scales - p.units * Unit::kRowScales;
    }
  }

  // Starts copying the next unit, if there is one, to the slot at `slot` bytes; rows past the block's become zeros. One
  // group of copies in any case.
  __device__ __forceinline__ void copy_next(const Kernel& p, const Part& part, int slot, int lane) {
    if (left > 0) {
      if constexpr (Layout::kWhole) {
        const bool residual = Layout::kResidual && k >= p.units;
        const uint32_t to = slots + slot;
        const uint32_t codes_to = to + Unit::piece_at(lane / Unit::kRowLanes, lane % Unit::kRowLanes);
        const int codes_left = left - lane / Unit::kRowLanes;
        const uint8_t* from = codes + offset + (residual ? residual_codes : 0);
#pragma unroll
        for (int i = 0; i < Unit::kRows / Unit::kCopyRows; ++i) {
          // The permutation of pieces repeats after two rows.
          copy_async16(codes_to + i * Unit::kCopyRows * Unit::kRowBytes, from, i * Unit::kCopyRows < codes_left);
          from += copy_step;
        }
        if (lane < Unit::kRows * Unit::kScaleLanes) {
          copy_async16(to + Unit::kScalesAt + lane * 16, scales + offset / 8 + (residual ? residual_scales : 0),
                       lane / Unit::kScaleLanes < left);
        }
      } else {
        copy_ragged<Unit>(p, part, slots + slot, left, k, lane);
      }
    }
    commit_copies();
    k += p.step_units;
    offset += step_offset;
    left -= p.step_tiles * Unit::kRows;
    if (k >= p.tile_units) {
      k -= p.tile_units;
      offset += wrap_offset;
      left -= Unit::kRows;
    }
  }
};

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
    uint8_t* const to = staged + token_eight_at<typename Layout::Unit>(at);
    *reinterpret_cast<uint2*>(to) = {scale_x(v.x), scale_x(v.y)};
    *reinterpret_cast<uint2*>(to + 16) = {scale_x(v.z), scale_x(v.w)};
  } else {
    constexpr int kChunks = Layout::Unit::kChunks;
    const int word = at % 4, piece = at / 4;
    const int j = piece % kChunks, q = piece / kChunks % 4, unit = piece / kChunks / 4;
    *reinterpret_cast<uint4*>(staged + ((((unit * kChunks + j) * 4 + word) * p.T + token) * 4 + q) * 16) = v;
  }
}

constexpr int kAhead = 3;  // eights of x that a thread loads before they are waited for

// Stages all of x, normalised or not. The first eights of a single token may have been loaded ahead.
template <typename Layout>
__device__ __forceinline__ void stage_x(uint8_t* staged, const float (*norm_sums)[kNormWarps], const Kernel& p,
                                        const uint4 (&ahead)[kAhead], const Eight& norm_ahead, int lane) {
  const int eights = p.units * (Layout::Unit::kColumns / 8), inside = p.K / 8, thread = static_cast<int>(threadIdx.x);
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

// The unit's sums for tokens 2q, 2q + 1 and rows g, g + 8 of lane 4g + q: {(g, 2q), (g, 2q + 1), (g + 8, 2q), …}. `x`
// is the lane's place in the staged unit, `word_bytes` from one eight of columns to the next.
template <typename Unit>
__device__ __forceinline__ float4 multiply_tokens(uint32_t unit, const uint8_t* x, int word_bytes, int g, int q) {
  float4 sums[2] = {};  // two chains, so that a product need not wait for the one before
  const uint32_t scales = unit + Unit::kScalesAt + g * Unit::kRowScales + q * 2 * Unit::kChunks;
  const uint32_t codes = unit + Unit::piece_at(g, q * Unit::kChunks);
#pragma unroll
  for (int j = 0; j < Unit::kChunks; ++j) {
    const uint4 top = load_shared16(codes ^ (j * 16)), bottom = load_shared16((codes ^ (j * 16)) + 8 * Unit::kRowBytes);
    const uint32_t top_scales = load_shared4(scales + j / 2 * 4) >> (j % 2 * 16);
    const uint32_t bottom_scales = load_shared4(scales + j / 2 * 4 + 8 * Unit::kRowScales) >> (j % 2 * 16);
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

__device__ __forceinline__ float load_y(const Kernel& p, const Matrix& matrix, int64_t at) {
  return p.y_f32 ? reinterpret_cast<const float*>(matrix.y)[at]
                 : bf16_to_f32(reinterpret_cast<const uint16_t*>(matrix.y)[at]);
}

__device__ __forceinline__ void store_y(const Kernel& p, const Matrix& matrix, int64_t at, float value) {
  if (p.y_f32) {
    reinterpret_cast<float*>(matrix.y)[at] = value;
  } else {
    reinterpret_cast<uint16_t*>(matrix.y)[at] = f32_to_bf16(value);
  }
}

// A row's sum for one token, of [unit][T][kRows] sums.
template <typename Layout>
__device__ __forceinline__ float row_sum(const Kernel& p, const float* sums, const Matrix& matrix, int row, int token) {
  constexpr int kRows = Layout::Unit::kRows;
  const int stride = (Layout::kOneToken ? 1 : p.T) * kRows;
  const float* from = sums + row / kRows * p.tile_units * stride + token * kRows + row % kRows;
  float result = 0;
#pragma unroll
  for (int plane = 0; plane < (Layout::kResidual ? 2 : 1); ++plane) {
    float sum = from[0];
#pragma unroll 4
    for (int i = 1; i < p.units; ++i) sum += from[i * stride];
    from += p.units * stride;
    result = plane == 0 ? sum * matrix.planes[0].scale : fmaf(sum, matrix.planes[1].scale, result);
  }
  return result;
}

// computes   y[T, N] (+)= x[T, K] · wᵀ, w decoded in registers; or swiglu of two such products; x normalised or not
// moves      read N·K/2 + N·K/16 B once, 2·T·K B a block from L2; write 2·T·N B (f32: 4)      bound: memory
// launch     grid about multiprocessors, block 32·kWarps, smem a ring of kStages units a warp, x, partial sums
//            a block owns neighbouring rows; their units are dealt to its warps in turn, each with its own ring
// needs      K % 16 == 0 (kWhole: of a unit), x, and for kWhole codes and scales, 16-byte aligned
// numerics   weights and x exact; f32 sums in the order of the contract
// measured   H200 T=1 K=2560: norm + N=151936 3881 GB/s, 91 % of copy (4245), 1.07 times a plain read; norm + gate, up
//            F=9728 + SwiGLU 2379 GB/s, 1.50 times; norm + q, k, v N=6144 1374 GB/s, 1.86 times; N=2560, added: K=4096
//            1072 GB/s, 1.89 times, K=9728 1521 GB/s, 1.94 times; 2026-11-21
template <typename Layout>
__global__ void __launch_bounds__(Layout::kThreads, Layout::kWhole ? 2 : 1)
    gemv_nvfp4_kernel(const __grid_constant__ Kernel p) {
  using Unit = typename Layout::Unit;
  constexpr bool kOneToken = Layout::kOneToken;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float norm_sums[kOneToken ? 1 : kGemvTokens][kNormWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int T = kOneToken ? 1 : p.T;
  uint8_t* const staged = shared + Layout::kWarps * Layout::kStages * Unit::kBytes;
  uint8_t* const zeros = staged + T * p.units * Unit::kXBytes;
  auto* const sums = reinterpret_cast<float*>(zeros + (kOneToken ? kZeroBytes<Unit> : 0));

  if (p.trigger == GemvTrigger::kFirst) let_next_kernel_start();
  const Part part(p);
  const int units = (part.rows + Unit::kRows - 1) / Unit::kRows * p.tile_units;
  Ring<Layout> ring(p, part, shared, warp, lane);
  const int first_k = ring.k;
  const auto fill_ring = [&] {
#pragma unroll 1
    for (int i = 0; i < Layout::kStages; ++i) ring.copy_next(p, part, i * Unit::kBytes, lane);
  };
  // Weights depend on no kernel before this one, so they travel while it is waited for. Where nothing is, x goes first,
  // which else would wait behind them.
  if (p.fill_early) fill_ring();
  Eight norm_ahead{};
  if (kOneToken && p.norm && thread < p.K / 8) norm_ahead = load8(p.norm + thread * 8);
  wait_for_previous_kernel();
  if (p.trigger == GemvTrigger::kAfterWait) let_next_kernel_start();
  uint4 ahead[kAhead];
  if constexpr (kOneToken) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = thread + i * Layout::kThreads;
      ahead[i] = at < p.K / 8 ? load_bits8(p.x + at * 8) : uint4{0, 0, 0, 0};
    }
  }
  NormItem item;
  const int items = p.norm ? p.norm_lanes / 32 * T : 0;
  if (warp < items) item.load(p, warp, lane);
  // What most threads add to. (More tokens would hold registers all the while.)
  const Matrix& matrix = p.matrices[part.matrix];
  float before = 0;
  if (kOneToken && p.accumulate && thread < part.outputs) before = load_y(p, matrix, part.first + thread);
  if (!p.fill_early) fill_ring();

  if constexpr (kOneToken) {
    for (int i = thread; i < kZeroBytes<Unit> / 16; i += Layout::kThreads)
      reinterpret_cast<uint4*>(zeros)[i] = {0, 0, 0, 0};
  }
#pragma unroll 1
  for (int i = warp; i < items; i += Layout::kWarps) {
    if (i != warp) item.load(p, i, lane);
    const float sum = item.sum_squares();
    if (lane == 0) norm_sums[i / (p.norm_lanes / 32)][i % (p.norm_lanes / 32)] = sum;
  }
  if (items > 0) __syncthreads();
  stage_x<Layout>(staged, norm_sums, p, ahead, norm_ahead, lane);
  __syncthreads();
  if (p.trigger == GemvTrigger::kStaged) let_next_kernel_start();

  // One token: the lanes 4g + q of columns g of b that belong to other lanes than q read zeros, of other banks than
  // those that do not. Several: lanes past the last token repeat it; their sums are not kept.
  const bool reads_x = !kOneToken || g / 2 == q;
  const uint8_t* const x = !kOneToken ? staged + (min(g, T - 1) * 4 + q) * 16
                           : reads_x  ? staged + q * 32 + g % 2 * 16
                                      : zeros + (g / 2 + 2) % 4 * 32;
  const int x_unit_bytes = reads_x ? T * Unit::kXBytes : 0;
  int slot = 0, k = first_k;
#pragma unroll 1
  for (int i = warp; i < units; i += Layout::kWarps) {
    wait_copies<Layout::kStages - 1>();
    __syncwarp();
    const uint32_t unit = ring.slots + slot;
    const uint8_t* const x_unit = x + (Layout::kResidual && k >= p.units ? k - p.units : k) * x_unit_bytes;
    float* const to = sums + i * (T * Unit::kRows) + g;
    if constexpr (kOneToken) {
      uint4 codes[Unit::kChunks];
      uint32_t scales[Unit::kChunks / 2];
#pragma unroll
      for (int j = 0; j < Unit::kChunks; ++j)
        codes[j] = load_shared16((unit + Unit::piece_at(g, q * Unit::kChunks)) ^ (j * 16));
#pragma unroll
      for (int j = 0; j < Unit::kChunks / 2; ++j)
        scales[j] = load_shared4(unit + Unit::kScalesAt + lane * 2 * Unit::kChunks + j * 4);
      __syncwarp();
      ring.copy_next(p, part, slot, lane);
      const float sum = multiply_token<Unit>(codes, scales, x_unit);
      if (q == 0) *to = sum;
    } else {
      const float4 sum = multiply_tokens<Unit>(unit, x_unit, T * 64, g, q);
      __syncwarp();
      ring.copy_next(p, part, slot, lane);
      if (2 * q < T) {
        to[2 * q * Unit::kRows] = sum.x;
        to[2 * q * Unit::kRows + 8] = sum.z;
      }
      if (2 * q + 1 < T) {
        to[(2 * q + 1) * Unit::kRows] = sum.y;
        to[(2 * q + 1) * Unit::kRows + 8] = sum.w;
      }
    }
    slot = slot + Unit::kBytes == Layout::kStages * Unit::kBytes ? 0 : slot + Unit::kBytes;
    k += p.step_units;
    if (k >= p.tile_units) k -= p.tile_units;
  }
  if (p.trigger == GemvTrigger::kMultiplied) let_next_kernel_start();
  __syncthreads();

#pragma unroll 1
  for (int token = 0; token < T; ++token) {
#pragma unroll 1
    for (int i = thread; i < part.outputs; i += Layout::kThreads) {
      const int64_t at = token * matrix.y_stride + part.first + i;
      float value = row_sum<Layout>(p, sums, matrix, p.swiglu ? 2 * i : i, token);
      if (p.swiglu) {
        const float up = row_sum<Layout>(p, sums, p.matrices[1], 2 * i + 1, token);
        value = swiglu_value(bf16_to_f32(f32_to_bf16(value)), bf16_to_f32(f32_to_bf16(up)));
      } else if (p.accumulate) {
        value += kOneToken && i == thread ? before : load_y(p, matrix, at);
      }
      store_y(p, matrix, at, value);
    }
  }
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

constexpr int64_t kPartialBytes = 24 * 1024;  // of unit sums, at most

// How a launch is laid out, and its shared memory. tokens == 0: not even one fits.
struct Choice {
  int tokens, warps, stages, chunks;
  bool overlaps, default_carveout;
  int blocks_end[kGemvMatrices];
  int64_t bytes;
  int rows() const { return tokens == 1 ? 8 : 16; }
};

// Whole units, at least one.
int64_t units_of(int64_t K, int chunks) {
  const int64_t unit = chunks * 128;
  return std::max<int64_t>(1, (K + unit - 1) / unit);
}

// Shared memory without the partial sums.
int64_t base_bytes(const Choice& choice, int64_t K) {
  const int64_t columns = choice.chunks * 128, unit = choice.rows() * (columns / 2 + columns / 16);
  const int64_t zeros = choice.tokens == 1 ? columns * 2 + 128 : 0;
  return choice.warps * choice.stages * unit + choice.tokens * units_of(K, choice.chunks) * columns * 2 + zeros;
}

int64_t shared_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kGemvTokens * kNormWarps * int64_t{sizeof(float)};
}

template <typename Layout>
void launch(const Kernel& p, const Choice& choice, cudaStream_t stream) {
  const auto kernel = gemv_nvfp4_kernel<Layout>;
  QN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(choice.bytes)));
  // All kernels of a chain divide L1 and shared memory alike, else a multiprocessor must be empty before the next
  // starts.
  QN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                           choice.default_carveout ? cudaSharedmemCarveoutDefault : cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(choice.blocks_end[kGemvMatrices - 1]));
  config.blockDim = dim3(Layout::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(choice.bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = choice.overlaps ? 1 : 0;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

template <bool kOne, int kWarps, int kStages, int kChunks>
bool launch_if(const Kernel& p, const Choice& choice, bool residual, cudaStream_t stream) {
  if ((choice.tokens == 1) != kOne || choice.warps != kWarps || choice.stages != kStages || choice.chunks != kChunks)
    return false;
  residual ? launch<LayoutOf<kOne, kWarps, kStages, kChunks, true, true>>(p, choice, stream)
           : launch<LayoutOf<kOne, kWarps, kStages, kChunks, false, true>>(p, choice, stream);
  return true;
}

void launch_whole(const Kernel& p, const Choice& choice, bool residual, cudaStream_t stream) {
  const bool launched = launch_if<true, 16, 1, 4>(p, choice, residual, stream) ||
                        launch_if<true, 16, 2, 4>(p, choice, residual, stream) ||
                        launch_if<true, 16, 4, 4>(p, choice, residual, stream) ||
                        launch_if<true, 16, 2, 2>(p, choice, residual, stream) ||
                        launch_if<true, 16, 4, 2>(p, choice, residual, stream) ||
                        launch_if<true, 16, 6, 2>(p, choice, residual, stream) ||
                        launch_if<false, 8, 1, 4>(p, choice, residual, stream) ||
                        launch_if<false, 8, 2, 4>(p, choice, residual, stream) ||
                        launch_if<false, 8, 4, 4>(p, choice, residual, stream);
  if (!launched)
    fail(Code::kInternal, "no GEMV of %d warps, %d stages, %d chunks", choice.warps, choice.stages, choice.chunks);
}

void launch_ragged(const Kernel& p, const Choice& choice, bool residual, cudaStream_t stream) {
  if (choice.tokens == 1) {
    residual ? launch<LayoutOf<true, 16, 1, 4, true, false>>(p, choice, stream)
             : launch<LayoutOf<true, 16, 1, 4, false, false>>(p, choice, stream);
  } else {
    residual ? launch<LayoutOf<false, 8, 1, 4, true, false>>(p, choice, stream)
             : launch<LayoutOf<false, 8, 1, 4, false, false>>(p, choice, stream);
  }
}

// The fewest outputs a block, so that all matrices' outputs are in at most `blocks` blocks of one matrix each.
int64_t outputs_per_block(const int64_t (&outputs)[kGemvMatrices], int64_t blocks) {
  int64_t total = 0;
  for (const int64_t count : outputs) total += count;
  for (int64_t most = (total + blocks - 1) / blocks;; ++most) {
    int64_t needed = 0;
    for (const int64_t count : outputs) needed += (count + most - 1) / most;
    if (needed <= blocks) return most;
  }
}

// Where there are fewer blocks than multiprocessors, others fill up: a next kernel that started early would have two
// blocks on an idle multiprocessor, and none elsewhere.
void deal_spare_blocks(int64_t (&blocks)[kGemvMatrices], const int64_t (&outputs)[kGemvMatrices], int64_t spare) {
  for (; spare > 0; --spare) {
    int most = 0;
    for (int i = 1; i < kGemvMatrices; ++i)
      if (outputs[i] * blocks[most] > outputs[most] * blocks[i]) most = i;
    if (outputs[most] <= blocks[most]) return;
    ++blocks[most];
  }
}

// The layout for up to `tokens` tokens: the longest ring that fits, fewer tokens when none does.
Choice choose(const GemvCudaArgs& args, const int64_t (&outputs)[kGemvMatrices], int planes, int64_t tokens,
              bool whole) {
  const GemvTuning& tuning = args.tuning;
  const int64_t limit = shared_limit();
  Choice choice{};
  choice.overlaps = args.overlap_previous;
  choice.default_carveout = tuning.default_carveout;
  choice.chunks = tuning.chunks ? tuning.chunks : 4;
  const int64_t resident =
      int64_t{device_attribute(cudaDevAttrMultiProcessorCount)} * (tuning.blocks ? tuning.blocks : 1);
  for (choice.tokens = static_cast<int>(tokens); choice.tokens > 0; --choice.tokens) {
    choice.warps = choice.tokens == 1 ? 16 : 8;
    const int64_t tile_bytes =
        choice.tokens * choice.rows() * planes * units_of(args.K, choice.chunks) * int64_t{sizeof(float)};
    const int64_t tile_outputs = choice.rows() / (args.swiglu ? 2 : 1);
    // One wave of blocks, unless one would then have more sums than it can keep.
    const int64_t most = std::min(outputs_per_block(outputs, std::max<int64_t>(resident, kGemvMatrices)),
                                  std::max<int64_t>(1, kPartialBytes / tile_bytes) * tile_outputs);
    int64_t blocks[kGemvMatrices], spare = resident;
    for (int i = 0; i < kGemvMatrices; ++i) spare -= blocks[i] = (outputs[i] + most - 1) / most;
    if (!tuning.uneven) deal_spare_blocks(blocks, outputs, spare);
    int64_t end = 0;
    for (int i = 0; i < kGemvMatrices; ++i) choice.blocks_end[i] = static_cast<int>(end += blocks[i]);
    for (const int stages : {tuning.stages, 2, 1}) {
      if (stages == 0) continue;
      choice.stages = whole ? stages : 1;
      choice.bytes = base_bytes(choice, args.K) + (most + tile_outputs - 1) / tile_outputs * tile_bytes;
      if (choice.bytes <= limit) return choice;
    }
  }
  return choice;
}

void check(const GemvCudaArgs& args) {
  if (args.T > kGemvTokens) fail(Code::kInternal, "a GEMV of %lld tokens", static_cast<long long>(args.T));
  if (args.swiglu && (args.matrix_count != 2 || args.matrices[0].N != args.matrices[1].N || args.accumulate))
    fail(Code::kInternal, "a SwiGLU GEMV needs two equal weights and a new y");
  if (args.norm && args.K > 16384)
    fail(Code::kInternal, "a GEMV cannot normalise %lld", static_cast<long long>(args.K));
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

bool gemv_nvfp4_fits_cuda(int64_t K) {
  Choice choice{};
  choice.tokens = choice.stages = 1;
  choice.warps = 16;
  choice.chunks = 4;
  return base_bytes(choice, K) + kPartialBytes <= shared_limit();
}

void gemv_nvfp4_cuda(const GemvCudaArgs& args, CudaStream stream) {
  check(args);
  int64_t outputs[kGemvMatrices] = {};
  bool residual = false;
  for (int i = 0; i < args.matrix_count; ++i) {
    outputs[i] = args.swiglu && i > 0 ? 0 : args.matrices[i].N;
    residual = residual || args.matrices[i].residual.codes;
  }
  if (args.T == 0 || outputs[0] + outputs[1] + outputs[2] == 0) return;
  const bool whole = args.K % 512 == 0 && args.K > 0;  // no model has another width
  for (int64_t t = 0; t < args.T;) {
    const Choice choice = choose(args, outputs, residual ? 2 : 1, args.T - t, whole);
    if (choice.tokens == 0) {
      fail(Code::kUnsupported, "a GEMV over %lld columns does not fit the shared memory of this device",
           static_cast<long long>(args.K));
    }
    Kernel p{};
    p.x = args.x + t * args.K;
    p.norm = args.norm;
    p.norm_eps = args.norm_eps;
    p.norm_lanes = args.K <= 1024 ? 32 : args.K <= 4096 ? 128 : 512;
    p.T = choice.tokens;
    p.K = static_cast<int>(args.K);
    p.units = static_cast<int>(units_of(args.K, choice.chunks));
    p.tile_units = p.units * (residual ? 2 : 1);
    p.step_tiles = choice.warps / p.tile_units;
    p.step_units = choice.warps % p.tile_units;
    p.y_f32 = args.y_type == CudaFloat::kF32;
    p.accumulate = args.accumulate;
    p.swiglu = args.swiglu;
    p.fill_early = args.overlap_previous && !args.tuning.fill_late;
    p.trigger = args.tuning.trigger == GemvTrigger::kChosen ? GemvTrigger::kAfterWait : args.tuning.trigger;
    const float sum_scale = choice.tokens == 1 ? kTokenSumScale : kTokensSumScale;
    for (int i = 0; i < kGemvMatrices; ++i) {
      const GemvMatrix& from = args.matrices[i];
      const int blocks = choice.blocks_end[i] - (i > 0 ? choice.blocks_end[i - 1] : 0);
      Matrix& to = p.matrices[i];
      to.planes[0] = {from.w.codes, from.w.scales, from.w.global_scale * sum_scale};
      to.planes[1] = to.planes[0];
      to.planes[1].scale = 0;
      if (from.residual.codes)
        to.planes[1] = {from.residual.codes, from.residual.scales, from.residual.global_scale * sum_scale};
      to.y_stride = from.y_stride ? from.y_stride : from.N;
      to.y = static_cast<uint8_t*>(from.y) + t * to.y_stride * (p.y_f32 ? 4 : 2);
      to.blocks_end = choice.blocks_end[i];
      to.outputs_per_block = blocks > 0 ? static_cast<int>(outputs[i] / blocks) : 0;
      to.longer = blocks > 0 ? static_cast<int>(outputs[i] % blocks) : 0;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    whole ? launch_whole(p, choice, residual, cuda_stream) : launch_ragged(p, choice, residual, cuda_stream);
    t += choice.tokens;
  }
}

}  // namespace qn
