// Longer than most, because the kernel, the choice of its layout and the layout itself must be read together.
#include "ops/gemv_fused.h"

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
#include "ops/swiglu_cuda.h"

namespace qn {

namespace {

constexpr int kNormWarps = 16;  // at most, of a row's sum of squares

// Sums are of e2m1 · kE2M1Unit, e4m3 · kE4M3Unit and x · 2^64, so that neither codes nor their products with small x
// leave the normal numbers; the store repays all three.
constexpr float kXScale = 0x1p64f;
constexpr float kSumScale = 1.0f / kXScale / kE2M1Unit / kE4M3Unit;

struct Plane {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  float scale = 0;  // of a sum: global · kSumScale
};

struct Matrix {
  Plane planes[2];  // packed, residual
  uint8_t* y = nullptr;
  int64_t y_stride = 0;
};

// Outputs are rows of one y: a block has neighbouring ones, as equally many as can be, of one matrix, or with swiglu of
// gate and up: then row 2i of its tiles is row i of gate and 2i + 1 row i of up.
struct Kernel {
  Matrix matrices[kGemvMatrices];
  int outputs[kGemvMatrices];     // rows of each y
  int blocks_end[kGemvMatrices];  // blocks of this matrix and those before
  const uint16_t* x;
  const float* norm;
  float norm_eps;
  int norm_lanes;  // 32, 128 or 512: the group of rms_norm_cuda for such a row
  int T, K;
  int units;   // of a row in one plane
  int planes;  // 1, or 2 with a residual
  bool y_f32, accumulate, swiglu;
  bool whole_tiles;  // a warp has all units of a tile, else units are dealt in turn
};

// A unit is kRows rows of a tile of 128 · kChunks columns: what a warp copies and multiplies at a time. In shared
// memory: codes, row by row, the 16-byte pieces of a row permuted so that the lanes of a read touch all banks; then
// scales, row by row. Lane 4g + q multiplies columns [q, q + 1) · 32 · kChunks of row g.
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
  static constexpr int kXBytes = kColumns * 2;
  static_assert((kChunks == 2 || kChunks == 4) && (kRows == 8 || kRows == 16));

  static __device__ __forceinline__ int piece_at(int row, int piece) {
    const int moved = kChunks == 4 ? piece ^ (piece >> 3 & 1) ^ ((row & 1) << 1) : piece ^ (row & 1);
    return row * kRowBytes + moved * 16;
  }
};

// A unit of the block: its tile, and which of the tile's units, residual after packed.
struct Cursor {
  int tile, unit;
};

// How a warp goes through the units.
struct Walk {
  Cursor first, step;
  int tile_units, wrap;  // tiles to add when a tile's units are through

  __device__ Walk(const Kernel& p, int warp, int warps) {
    tile_units = p.units * p.planes;
    if (p.whole_tiles) {
      first = {warp, 0};
      step = {0, 1};
      wrap = warps;
    } else {
      first = {warp / tile_units, warp % tile_units};
      step = {warps / tile_units, warps % tile_units};
      wrap = 1;
    }
  }
  __device__ __forceinline__ void advance(Cursor& at) const {
    at.tile += step.tile;
    at.unit += step.unit;
    if (at.unit >= tile_units) {
      at.unit -= tile_units;
      at.tile += wrap;
    }
  }
};

// The block's part of the outputs.
struct Part {
  int matrix;
  int first, outputs;  // rows of y
  int rows, tiles;     // of weights

  __device__ Part(const Kernel& p, int tile_rows) {
    const int block = static_cast<int>(blockIdx.x);
    matrix = (block >= p.blocks_end[0] ? 1 : 0) + (block >= p.blocks_end[1] ? 1 : 0);
    const int begin = matrix == 0 ? 0 : p.blocks_end[matrix - 1];
    const int count = p.blocks_end[matrix] - begin;
    first = static_cast<int>(int64_t{p.outputs[matrix]} * (block - begin) / count);
    outputs = static_cast<int>(int64_t{p.outputs[matrix]} * (block - begin + 1) / count) - first;
    rows = p.swiglu ? 2 * outputs : outputs;
    tiles = (rows + tile_rows - 1) / tile_rows;
  }
};

// What a lane copies of every unit, as bytes from the unit's place in the plane (in scales: an eighth of it).
template <typename Unit>
struct LaneCopies {
  int matrix, scales_matrix;
  int64_t codes_at, scales_at;
  uint32_t codes_to, scales_to;  // in a slot
  int row, scales_row;           // of the tile, the first of the codes
  uint32_t tile_step, copy_step;

  __device__ LaneCopies(const Kernel& p, const Part& part, int lane) {
    const int pairs = p.swiglu ? 2 : 1, row_bytes = p.K / 2;
    const auto matrix_of = [&](int inside) { return p.swiglu ? inside % 2 : part.matrix; };
    row = lane / Unit::kRowLanes;
    const int piece = lane % Unit::kRowLanes;
    matrix = matrix_of(row);
    codes_at = int64_t{part.first + row / pairs} * row_bytes + piece * 16;
    codes_to = Unit::piece_at(row, piece);
    scales_row = lane / Unit::kScaleLanes;
    scales_matrix = matrix_of(scales_row);
    scales_at = int64_t{part.first + scales_row / pairs} * (row_bytes / 8) + lane % Unit::kScaleLanes * 16;
    scales_to = Unit::kScalesAt + lane * 16;
    tile_step = Unit::kRows / pairs * row_bytes;
    copy_step = Unit::kCopyRows / pairs * row_bytes;
  }
};

// Where a row does not end at a unit: 16 codes and a scale at a time, through registers. Columns past K are zeros.
template <typename Unit>
__device__ __noinline__ void copy_ragged_unit(const Kernel& p, const Part& part, uint8_t* slot, int tile, int plane,
                                              int column, int lane) {
  for (int block = lane; block < Unit::kRows * Unit::kRowScales; block += 32) {
    const int inside = block / Unit::kRowScales, at = block % Unit::kRowScales, row = tile * Unit::kRows + inside;
    const Plane& w = p.matrices[p.swiglu ? inside % 2 : part.matrix].planes[plane];
    uint2 codes{0, 0};
    uint8_t scale = 0;
    if (row < part.rows && column + at * 16 < p.K && w.codes) {
      const int64_t offset = int64_t{part.first + (p.swiglu ? row / 2 : row)} * p.K + column + at * 16;
      codes = *reinterpret_cast<const uint2*>(w.codes + offset / 2);
      scale = w.scales[offset / 16];
    }
    *reinterpret_cast<uint2*>(slot + Unit::piece_at(inside, at / 2) + at % 2 * 8) = codes;
    slot[Unit::kScalesAt + inside * Unit::kRowScales + at] = scale;
  }
}

// Starts copying unit `at` to `slot`; rows past the block's end become zeros. The caller commits.
template <typename Unit, bool kWhole>
__device__ __forceinline__ void copy_unit(const Kernel& p, const Part& part, const LaneCopies<Unit>& lane_copies,
                                          uint8_t* slot, Cursor at, int lane) {
  const int plane = at.unit >= p.units ? 1 : 0, k = at.unit - plane * p.units;
  if constexpr (!kWhole) return copy_ragged_unit<Unit>(p, part, slot, at.tile, plane, k * Unit::kColumns, lane);
  const LaneCopies<Unit>& mine = lane_copies;
  const uint32_t to = shared_address(slot), offset = at.tile * mine.tile_step + k * Unit::kRowBytes;
  const int left = part.rows - at.tile * Unit::kRows;
  const uint8_t* const codes = p.matrices[mine.matrix].planes[plane].codes;
  const int wanted = codes ? left - mine.row : 0;
  const uint8_t* const from = codes + mine.codes_at + offset;
#pragma unroll
  for (uint32_t i = 0; i < Unit::kRows / Unit::kCopyRows; ++i) {
    // The permutation of pieces repeats after two rows.
    copy_async16(to + mine.codes_to + i * Unit::kCopyRows * Unit::kRowBytes, from + uint64_t{i} * mine.copy_step,
                 static_cast<int>(i) * Unit::kCopyRows < wanted);
  }
  if (lane < Unit::kRows * Unit::kScaleLanes) {
    const uint8_t* const scales = p.matrices[mine.scales_matrix].planes[plane].scales;
    copy_async16(to + mine.scales_to, scales + mine.scales_at + offset / 8, codes && mine.scales_row < left);
  }
}

__device__ __forceinline__ uint32_t scale_x(uint32_t pair) {
  const __nv_bfloat162 scaled = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair), __float2bfloat162_rn(kXScale));
  return *reinterpret_cast<const uint32_t*>(&scaled);
}

// Sums of squares of rows of x by warps of 32 lanes, in the order of rms_norm_kernel (rms_norm.cu), with which this
// must stay in step: lane l of the row's norm_lanes has vectors l, l + norm_lanes, … of eight columns.
template <int kWarps>
__device__ void sum_squares(float (*sums)[kNormWarps], const Kernel& p, int warp, int lane) {
  const int row_warps = p.norm_lanes / 32, vectors = p.K / kLaneValues;
  for (int i = warp; i < row_warps * p.T; i += kWarps) {
    const int token = i / row_warps, part = i % row_warps;
    float sum = 0;
    for (int v = part * 32 + lane; v < vectors; v += p.norm_lanes) {
      const Eight eight = load8(p.x + int64_t{token} * p.K + v * kLaneValues);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) sum = fmaf(eight.value[j], eight.value[j], sum);
    }
    sum = reduce_lanes<32>(sum, AddLanes{});
    if (lane == 0) sums[token][part] = sum;
  }
}

__device__ __forceinline__ float inverse_rms(const float* sums, const Kernel& p, int lane) {
  const int row_warps = p.norm_lanes / 32;
  float sum = sums[lane % row_warps];
  for (int step = row_warps / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return 1.0f / sqrtf(sum / static_cast<float>(p.K) + p.norm_eps);
}

// x · 2^64 in shared memory as the operand b of multiply_tiles: lane 4g + q multiplies with column g of b, of which
// columns 2q and 2q + 1 belong to the lanes q: they hold code pairs (0, 4), (1, 5) and (2, 6), (3, 7) of eight columns
// of x; the other lanes of q read zeros. Of each piece of 32 columns, half i holds eights 2i and 2i + 1:
// [token][unit][piece of a lane j][half i][q][column of b, 2q + h] 16 bytes, so that the eight lanes read 128 in a row.
template <typename Unit, int kTokens, int kWarps>
__device__ void stage_x(uint8_t* staged, const float (*norm_sums)[kNormWarps], const Kernel& p, int lane) {
  const int eights = p.units * (Unit::kColumns / 8), inside = p.K / 8;
  for (int token = 0; token < kTokens; ++token) {
    const float inverse = p.norm && token < p.T ? inverse_rms(norm_sums[token], p, lane) : 0.0f;
    uint8_t* row = staged + token * p.units * Unit::kXBytes;
    for (int at = static_cast<int>(threadIdx.x); at < eights; at += kWarps * 32) {
      uint4 v{0, 0, 0, 0};
      if (at < inside && token < p.T) {
        v = load_bits8(p.x + int64_t{token} * p.K + at * 8);
        if (p.norm) {
          Eight eight = bf16x8_to_f32(v);
          const Eight weight = load8(p.norm + at * 8);
#pragma unroll
          for (int j = 0; j < kLaneValues; ++j) eight.value[j] = eight.value[j] * inverse * weight.value[j];
          v = f32_to_bf16x8(eight);
        }
        v = {scale_x(v.x), scale_x(v.y), scale_x(v.z), scale_x(v.w)};
      }
      const int word = at % 4, piece = at / 4;
      const int j = piece % Unit::kChunks, q = piece / Unit::kChunks % 4, unit = piece / Unit::kChunks / 4;
      uint8_t* to = row + (((unit * Unit::kChunks + j) * 2 + word / 2) * 8 + q * 2) * 16 + word % 2 * 8;
      *reinterpret_cast<uint2*>(to) = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632)};
      *reinterpret_cast<uint2*>(to + 16) = {__byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
    }
  }
}

template <typename Unit>
constexpr int kZeroBytes = Unit::kXBytes + 128;

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

// Sums of the block's tiles: [tile][plane][part][kTokens][kRows], parts in the order in which they are added.
template <int kTokens, int kRows>
struct Partials {
  float* sums;
  int parts;

  __device__ __forceinline__ float* at(const Kernel& p, int tile, int plane, int part) const {
    return sums + ((tile * p.planes + plane) * parts + part) * (kTokens * kRows);
  }
  __device__ __forceinline__ float row_sum(const Kernel& p, int matrix, int row, int token) const {
    float result = 0;
#pragma unroll 1
    for (int plane = 0; plane < p.planes; ++plane) {
      const float* from = at(p, row / kRows, plane, 0) + token * kRows + row % kRows;
      float sum = from[0];
#pragma unroll 4
      for (int i = 1; i < parts; ++i) sum += from[i * kTokens * kRows];
      result += sum * p.matrices[matrix].planes[plane].scale;
    }
    return result;
  }
};

// computes   y[T, N] (+)= x[T, K] · wᵀ, w decoded in registers; or swiglu of two such products; x normalised or not
// moves      read N·K/2 + N·K/16 B once, 2·T·K B a block from L2; write 2·T·N B (f32: 4)      bound: memory
// launch     grid up to multiprocessors · blocks, block 32·kWarps, smem a ring of kStages units a warp, x, partial sums
//            a block owns neighbouring rows; their units are dealt to its warps in turn, each with its own ring
// needs      K % 16 == 0 (kWhole: of a unit), x, and for kWhole codes and scales, 16-byte aligned
// numerics   codes and x exact, f32 sums: 16 columns in the tensor core, then in the order of columns
// measured   not yet
template <int kTokens, int kWarps, int kStages, int kRows, int kChunks, bool kWhole>
__global__ void __launch_bounds__(kWarps * 32) fused_gemv_nvfp4_kernel(const __grid_constant__ Kernel p) {
  using Unit = UnitOf<kRows, kChunks>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float norm_sums[kTokens][kNormWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  uint8_t* const ring = shared + warp * (kStages * Unit::kBytes);
  uint8_t* const staged = shared + kWarps * kStages * Unit::kBytes;
  uint8_t* const zeros = staged + kTokens * p.units * Unit::kXBytes;
  auto* const sums = reinterpret_cast<float*>(zeros + kZeroBytes<Unit>);

  const Part part(p, kRows);
  const Walk walk(p, warp, kWarps);
  const LaneCopies<Unit> lane_copies(p, part, lane);

  let_next_kernel_start();
  // Weights depend on no kernel before this one, so they travel while x is waited for and staged.
  Cursor copying = walk.first;
  const auto copy_next = [&](int slot) {
    if (copying.tile < part.tiles)
      copy_unit<Unit, kWhole>(p, part, lane_copies, ring + slot * Unit::kBytes, copying, lane);
    commit_copies();
    walk.advance(copying);
  };
#pragma unroll 1
  for (int slot = 0; slot < kStages; ++slot) copy_next(slot);

  for (int i = static_cast<int>(threadIdx.x); i < kZeroBytes<Unit> / 16; i += kWarps * 32)
    reinterpret_cast<uint4*>(zeros)[i] = {0, 0, 0, 0};
  wait_for_previous_kernel();
  const Matrix& matrix = p.matrices[part.matrix];
  const int thread = static_cast<int>(threadIdx.x);
  // What most threads add to, before it would be waited for. (More tokens would hold registers all the while.)
  float before = 0;
  if (kTokens == 1 && p.accumulate && thread < part.outputs) before = load_y(p, matrix, part.first + thread);
  if (p.norm) {
    sum_squares<kWarps>(norm_sums, p, warp, lane);
    __syncthreads();
  }
  stage_x<Unit, kTokens, kWarps>(staged, norm_sums, p, lane);
  __syncthreads();

  // The lanes 4g + q of columns g of b that belong to other lanes than q read zeros, of other banks than those that do
  // not.
  const bool reads_x = g / 2 == q;
  const uint8_t* const x = reads_x ? staged + q * 32 + g % 2 * 16 : zeros + (g / 2 + 2) % 4 * 32;
  const int x_mask = reads_x ? -1 : 0;

  const Partials<kTokens, kRows> partials{sums, p.whole_tiles ? 1 : p.units};
  constexpr int kHalves = kRows / 8;
  float totals[kHalves][kTokens];  // of whole tiles
  int slot = 0;
  for (Cursor at = walk.first; at.tile < part.tiles; walk.advance(at)) {
    wait_copies<kStages - 1>();
    __syncwarp();
    const uint8_t* const unit = ring + slot * Unit::kBytes;
    uint4 codes[kHalves][kChunks];
    uint32_t scales[kHalves][kChunks / 2];
#pragma unroll
    for (int r = 0; r < kHalves; ++r) {
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        codes[r][j] = *reinterpret_cast<const uint4*>(unit + Unit::piece_at(r * 8 + g, q * kChunks + j));
#pragma unroll
      for (int j = 0; j < kChunks / 2; ++j)
        scales[r][j] = reinterpret_cast<const uint32_t*>(unit + Unit::kScalesAt + (r * 32 + lane) * 2 * kChunks)[j];
    }
    __syncwarp();
    copy_next(slot);
    slot = slot + 1 == kStages ? 0 : slot + 1;

    const int plane = at.unit >= p.units ? 1 : 0, k = at.unit - plane * p.units;
    float sum[kHalves][kTokens] = {};
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      float2 scale[kHalves];
#pragma unroll
      for (int r = 0; r < kHalves; ++r)
        scale[r] = j % 2 == 0 ? decode_e4m3x2<0>(scales[r][j / 2]) : decode_e4m3x2<2>(scales[r][j / 2]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 low[kHalves], high[kHalves];
#pragma unroll
        for (int r = 0; r < kHalves; ++r) {
          low[r] = e2m1x8_to_bf16(half == 0 ? codes[r][j].x : codes[r][j].z);
          high[r] = e2m1x8_to_bf16(half == 0 ? codes[r][j].y : codes[r][j].w);
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const int offset = x_mask & ((t * p.units + k) * Unit::kXBytes);
          const uint4 b = *reinterpret_cast<const uint4*>(x + offset + (j * 2 + half) * 128);
#pragma unroll
          for (int r = 0; r < kHalves; ++r) {
            // Rows g of the products take pairs (0, 4), (1, 5) with column 2q, rows g + 8 the others with column
            // 2q + 1.
            float4 product = multiply_tiles({low[r].x, low[r].z, low[r].y, low[r].w}, {b.x, b.y}, {0, 0, 0, 0});
            product = multiply_tiles({high[r].x, high[r].z, high[r].y, high[r].w}, {b.z, b.w}, product);
            sum[r][t] = fmaf(product.x + product.w, half == 0 ? scale[r].x : scale[r].y, sum[r][t]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kHalves; ++r) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        sum[r][t] = reduce_lanes<4>(sum[r][t], AddLanes{});
        if (p.whole_tiles) sum[r][t] = totals[r][t] = k == 0 ? sum[r][t] : totals[r][t] + sum[r][t];
      }
    }
    if (p.whole_tiles && k + 1 < p.units) continue;
    float* const to = partials.at(p, at.tile, plane, p.whole_tiles ? 0 : k);
#pragma unroll
    for (int r = 0; r < kHalves; ++r) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (q == t % 4) to[t * kRows + r * 8 + g] = sum[r][t];
      }
    }
  }
  __syncthreads();

  for (int token = 0; token < p.T; ++token) {
#pragma unroll 1
    for (int i = thread; i < part.outputs; i += kWarps * 32) {
      const int row = p.swiglu ? 2 * i : i;
      const int64_t at = token * matrix.y_stride + part.first + i;
      float value = partials.row_sum(p, part.matrix, row, token);
      if (p.swiglu) {
        const float up = partials.row_sum(p, 1, row + 1, token);
        value = swiglu_value(bf16_to_f32(f32_to_bf16(value)), bf16_to_f32(f32_to_bf16(up)));
      } else if (p.accumulate) {
        value += kTokens == 1 && i == thread ? before : load_y(p, matrix, at);
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

constexpr int64_t kPartialBytes = 24 * 1024;  // at most

// How a launch is laid out, and its shared memory.
struct Layout {
  int tokens, warps, stages, rows, chunks;
  int blocks_end[kGemvMatrices];
  bool whole_tiles;
  int64_t bytes;
};

// Whole units, at least one.
int64_t padded(int64_t K, int chunks) {
  const int64_t unit = chunks * 128;
  return std::max<int64_t>(1, (K + unit - 1) / unit) * unit;
}

// Shared memory without the partial sums.
int64_t base_bytes(int64_t tokens, int64_t K, int warps, int stages, int rows, int chunks) {
  const int64_t columns = chunks * 128;
  const int64_t unit = rows * (columns / 2 + columns / 16), zeros = columns * 2 + 128;
  return warps * stages * unit + tokens * padded(K, chunks) * 2 + zeros;
}

int64_t shared_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kGemvTokens * kNormWarps * int64_t{sizeof(float)};
}

template <int kTokens, int kWarps, int kStages, int kRows, int kChunks, bool kWhole>
void launch(const Kernel& p, const Layout& layout, bool overlap, cudaStream_t stream) {
  const auto kernel = fused_gemv_nvfp4_kernel<kTokens, kWarps, kStages, kRows, kChunks, kWhole>;
  QN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(layout.bytes)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(layout.blocks_end[kGemvMatrices - 1]));
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = static_cast<size_t>(layout.bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

template <int kWarps, int kStages, int kRows, int kChunks>
bool launch_if(const Kernel& p, const Layout& layout, bool overlap, cudaStream_t stream) {
  if (layout.warps != kWarps || layout.stages != kStages || layout.rows != kRows || layout.chunks != kChunks)
    return false;
  launch<1, kWarps, kStages, kRows, kChunks, true>(p, layout, overlap, stream);
  return true;
}

// One token, every layout that benchmarks may ask for.
void launch_token(const Kernel& p, const Layout& layout, bool overlap, cudaStream_t stream) {
  const bool launched =
      launch_if<16, 1, 8, 4>(p, layout, overlap, stream) || launch_if<16, 2, 8, 4>(p, layout, overlap, stream) ||
      launch_if<16, 3, 8, 4>(p, layout, overlap, stream) || launch_if<16, 4, 8, 4>(p, layout, overlap, stream) ||
      launch_if<16, 5, 8, 4>(p, layout, overlap, stream) || launch_if<16, 4, 8, 2>(p, layout, overlap, stream) ||
      launch_if<16, 6, 8, 2>(p, layout, overlap, stream) || launch_if<16, 8, 8, 2>(p, layout, overlap, stream) ||
      launch_if<8, 4, 8, 4>(p, layout, overlap, stream) || launch_if<8, 6, 8, 4>(p, layout, overlap, stream) ||
      launch_if<8, 8, 8, 4>(p, layout, overlap, stream) || launch_if<8, 8, 8, 2>(p, layout, overlap, stream) ||
      launch_if<16, 2, 16, 4>(p, layout, overlap, stream) || launch_if<8, 2, 16, 4>(p, layout, overlap, stream) ||
      launch_if<8, 4, 16, 4>(p, layout, overlap, stream) || launch_if<12, 3, 16, 4>(p, layout, overlap, stream) ||
      launch_if<16, 4, 16, 2>(p, layout, overlap, stream) || launch_if<8, 4, 16, 2>(p, layout, overlap, stream) ||
      launch_if<8, 8, 16, 2>(p, layout, overlap, stream);
  if (!launched) {
    fail(Code::kInternal, "no GEMV of %d warps, %d stages, %d rows, %d chunks", layout.warps, layout.stages,
         layout.rows, layout.chunks);
  }
}

template <int kTokens>
void launch_tokens(const Kernel& p, const Layout& layout, bool overlap, cudaStream_t stream) {
  if (layout.stages == 4) return launch<kTokens, 16, 4, 8, 4, true>(p, layout, overlap, stream);
  if (layout.stages == 2) return launch<kTokens, 16, 2, 8, 4, true>(p, layout, overlap, stream);
  launch<kTokens, 16, 1, 8, 4, true>(p, layout, overlap, stream);
}

// The fewest outputs a block, so that all matrices' outputs are in at most `blocks` blocks of one matrix each.
int64_t block_outputs(const Kernel& p, int64_t blocks) {
  int64_t total = 0;
  for (const int outputs : p.outputs) total += outputs;
  for (int64_t most = (total + blocks - 1) / blocks;; ++most) {
    int64_t needed = 0;
    for (const int outputs : p.outputs) needed += (outputs + most - 1) / most;
    if (needed <= blocks) return most;
  }
}

// The layout for up to `tokens` tokens: the longest ring that fits; fewer tokens when none does; 0 tokens when even one
// does not fit. All of the kernel but what the layout decides is set.
Layout choose_layout(const Kernel& p, int64_t tokens, bool whole, const GemvTuning& tuning) {
  const int64_t limit = shared_limit();
  Layout layout{};
  layout.warps = tuning.warps ? tuning.warps : 16;
  layout.rows = tuning.rows ? tuning.rows : 8;
  layout.chunks = tuning.chunks ? tuning.chunks : 4;
  const int64_t resident =
      int64_t{device_attribute(cudaDevAttrMultiProcessorCount)} * (tuning.blocks ? tuning.blocks : 1);
  const int64_t units = padded(p.K, layout.chunks) / (layout.chunks * 128);
  const int fewer = whole ? 2 : 8;  // the widths that kernels are made for: 8, 4, 2, 1, or 8 and 1
  layout.tokens = tokens > 4 || (tokens > 1 && !whole) ? 8 : tokens > 2 ? 4 : static_cast<int>(tokens);
  for (; layout.tokens > 0; layout.tokens /= fewer) {
    const int64_t tile_bytes = int64_t{layout.tokens} * layout.rows * p.planes * int64_t{sizeof(float)};
    const int64_t tile_outputs = layout.rows / (p.swiglu ? 2 : 1);
    // One wave of blocks, unless one would then have more sums than it can keep.
    const int64_t most = std::min(block_outputs(p, std::max<int64_t>(resident, kGemvMatrices)),
                                  kPartialBytes / tile_bytes * tile_outputs);
    int64_t end = 0;
    for (int i = 0; i < kGemvMatrices; ++i)
      layout.blocks_end[i] = static_cast<int>(end += (p.outputs[i] + most - 1) / most);
    const int64_t tiles = (most + tile_outputs - 1) / tile_outputs;
    // With many tiles a warp has whole ones, and only their sums to keep.
    layout.whole_tiles = tiles >= 8 * layout.warps || tiles * units * tile_bytes > kPartialBytes;
    const int64_t partial_bytes = tiles * tile_bytes * (layout.whole_tiles ? 1 : units);
    for (const int stages : {4, 2, 1}) {
      layout.stages = tuning.stages ? tuning.stages : whole ? stages : 1;
      layout.bytes =
          base_bytes(layout.tokens, p.K, layout.warps, layout.stages, layout.rows, layout.chunks) + partial_bytes;
      if (layout.bytes <= limit) return layout;
    }
  }
  return layout;
}

void check(const FusedGemvCudaArgs& args) {
  if (args.T > kGemvTokens) fail(Code::kInternal, "a GEMV of %lld tokens", static_cast<long long>(args.T));
  if (args.swiglu && (args.matrix_count != 2 || args.matrices[0].N != args.matrices[1].N || args.accumulate))
    fail(Code::kInternal, "a SwiGLU GEMV needs two equal weights and a new y");
  if (args.norm && args.K > 16384)
    fail(Code::kInternal, "a GEMV cannot normalise %lld", static_cast<long long>(args.K));
}

Plane plane_of(const Nvfp4View& w) { return {w.codes, w.scales, w.global_scale * kSumScale}; }

Kernel kernel_of(const FusedGemvCudaArgs& args) {
  Kernel p{};
  p.x = args.x;
  p.norm = args.norm;
  p.norm_eps = args.norm_eps;
  p.norm_lanes = args.K <= 1024 ? 32 : args.K <= 4096 ? 128 : 512;
  p.T = static_cast<int>(args.T);
  p.K = static_cast<int>(args.K);
  p.planes = 1;
  p.y_f32 = args.y_type == CudaFloat::kF32;
  p.accumulate = args.accumulate;
  p.swiglu = args.swiglu;
  for (int i = 0; i < args.matrix_count; ++i) {
    const GemvMatrix& from = args.matrices[i];
    p.matrices[i] = {{plane_of(from.w), plane_of(from.residual)},
                     static_cast<uint8_t*>(from.y),
                     from.y_stride ? from.y_stride : from.N};
    if (from.residual.codes) p.planes = 2;
    p.outputs[i] = args.swiglu && i > 0 ? 0 : static_cast<int>(from.N);
  }
  return p;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

bool fused_gemv_nvfp4_fits_cuda(int64_t K) { return base_bytes(1, K, 16, 1, 8, 4) + kPartialBytes <= shared_limit(); }

void fused_gemv_nvfp4_cuda(const FusedGemvCudaArgs& args, CudaStream stream) {
  check(args);
  Kernel p = kernel_of(args);
  if (args.T == 0 || p.outputs[0] + p.outputs[1] + p.outputs[2] == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  // No model has another width; one layout serves it.
  const bool whole = args.K % 512 == 0 && args.K > 0;
  for (int64_t t = 0; t < args.T;) {
    const Layout layout = choose_layout(p, args.T - t, whole, args.tuning);
    if (layout.tokens == 0) {
      fail(Code::kUnsupported, "a GEMV over %lld columns does not fit the shared memory of this device",
           static_cast<long long>(args.K));
    }
    p.T = static_cast<int>(std::min<int64_t>(layout.tokens, args.T - t));
    p.units = static_cast<int>(padded(args.K, layout.chunks) / (layout.chunks * 128));
    p.whole_tiles = layout.whole_tiles;
    std::copy(std::begin(layout.blocks_end), std::end(layout.blocks_end), p.blocks_end);
    if (!whole) {
      layout.tokens > 1 ? launch<8, 16, 1, 8, 4, false>(p, layout, args.overlap_previous, cuda_stream)
                        : launch<1, 16, 1, 8, 4, false>(p, layout, args.overlap_previous, cuda_stream);
    } else if (layout.tokens == 1) {
      launch_token(p, layout, args.overlap_previous, cuda_stream);
    } else if (layout.tokens == 2) {
      launch_tokens<2>(p, layout, args.overlap_previous, cuda_stream);
    } else if (layout.tokens == 4) {
      launch_tokens<4>(p, layout, args.overlap_previous, cuda_stream);
    } else {
      launch_tokens<8>(p, layout, args.overlap_previous, cuda_stream);
    }
    p.x += p.T * args.K;
    for (Matrix& matrix : p.matrices) matrix.y += p.T * matrix.y_stride * (p.y_f32 ? 4 : 2);
    t += p.T;
  }
}

}  // namespace qn
