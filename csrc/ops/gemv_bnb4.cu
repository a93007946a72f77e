#include "ops/gemv_bnb4.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/bf16x8_cuda.h"
#include "ops/bnb4_cuda.h"

namespace qn {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 4;          // of a warp at once: they share x
constexpr int kLaneColumns = 16;  // of a lane at once: 8 bytes of codes, all of one block
constexpr int kStep = 32 * kLaneColumns;
constexpr int kReplicas = 16;  // of the table: 8-byte reads go out by half warps, every lane of one has its own banks
constexpr int kTokensInRegisters = 2;  // whose columns a lane keeps for all rows
constexpr int kBlocksPerProcessor = 2;

struct Plane {
  const uint8_t* codes;
  const float* absmax;
  void* y;  // of the first token
  int64_t N;
  int64_t groups_end;  // of kRows rows, over this matrix and those before it
};

struct Kernel {
  Plane planes[kGemvMatrices];
  const uint16_t* x;
  int64_t y_stride, groups;
  int K, steps;
  int splits;  // warps that share the steps of a group
  Codebook codebook;
  bool y_f32, accumulate;
};

// The values of both nibbles of every byte, `kReplicas` times side by side.
__device__ void fill_table(float2* table, Codebook codebook) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * kReplicas; i += kThreads) {
    const uint32_t byte = static_cast<uint32_t>(i) / kReplicas;
    table[i] = {bnb4_value(codebook, byte & 15u), bnb4_value(codebook, byte >> 4)};
  }
}

// Where a warp's rows begin; rows past the last one repeat it and are not stored.
struct Rows {
  const uint8_t* codes;
  const float* absmax;
  int count;

  __device__ Rows(const Kernel& p, const Plane& plane, int64_t first) {
    codes = plane.codes + first * (p.K / 2);
    absmax = plane.absmax + first * (p.K / kBnb4BlockSize);
    count = static_cast<int>(min(int64_t{kRows}, plane.N - first));
  }
};

// What a lane has of one step: zeros past the last column.
struct Piece {
  uint2 codes[kRows];
  float absmax[kRows];

  __device__ __forceinline__ void load(const Kernel& p, const Rows& rows, int column) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      codes[r] = {0, 0};
      absmax[r] = 0;
      if (column >= p.K) continue;
      const int row = min(r, rows.count - 1);
      // Read once: kept out of L1, where x is.
      asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
          : "=r"(codes[r].x), "=r"(codes[r].y)
          : "l"(rows.codes + row * (p.K / 2) + column / 2));
      asm("ld.global.nc.L1::no_allocate.f32 %0, [%1];"
          : "=f"(absmax[r])
          : "l"(rows.absmax + (row * p.K + column) / static_cast<int>(kBnb4BlockSize)));
    }
  }
};

struct Sixteen {
  float value[kLaneColumns];
};

__device__ __forceinline__ Sixteen x_values(const Kernel& p, int token, int column) {
  Sixteen out{};
  if (column >= p.K) return out;
  const uint16_t* const from = p.x + static_cast<int64_t>(token) * p.K + column;
  const Eight low = load8(from), high = load8(from + kLaneValues);
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    out.value[i] = low.value[i];
    out.value[i + kLaneValues] = high.value[i];
  }
  return out;
}

// Byte i of a word, times the bytes of a table entry's replicas, plus where this lane's replica is.
__device__ __forceinline__ Sixteen weight_values(const float2* table, uint2 codes, uint32_t lane_offset) {
  constexpr int kShift = 7;
  static_assert(kReplicas * sizeof(float2) == 1 << kShift);
  const uint32_t words[2] = {codes.x, codes.y};
  Sixteen out;
#pragma unroll
  for (int i = 0; i < kLaneColumns / 2; ++i) {
    const uint32_t word = words[i / 4];
    const uint32_t entry = i % 4 == 0 ? word << kShift : word >> (8 * (i % 4) - kShift);
    const float2 pair = *reinterpret_cast<const float2*>(reinterpret_cast<const char*>(table) +
                                                         ((entry & (0xffu << kShift)) | lane_offset));
    out.value[2 * i] = pair.x;
    out.value[2 * i + 1] = pair.y;
  }
  return out;
}

__device__ __forceinline__ float add_product(float sum, float absmax, const Sixteen& w, const Sixteen& x) {
  float product = w.value[0] * x.value[0];
#pragma unroll
  for (int i = 1; i < kLaneColumns; ++i) product = fmaf(w.value[i], x.value[i], product);
  return fmaf(product, absmax, sum);
}

template <int kTokens>
__device__ __forceinline__ void add_piece(float (&sums)[kRows][kTokens], const Kernel& p, const Piece& piece,
                                          const float2* table, int column, uint32_t lane_offset) {
  if constexpr (kTokens <= kTokensInRegisters) {
    Sixteen x[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) x[t] = x_values(p, t, column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Sixteen w = weight_values(table, piece.codes[r], lane_offset);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sums[r][t] = add_product(sums[r][t], piece.absmax[r], w, x[t]);
    }
  } else {
    // The tokens' columns would not fit the registers.
    Sixteen w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) w[r] = weight_values(table, piece.codes[r], lane_offset);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Sixteen x = x_values(p, t, column);
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r][t] = add_product(sums[r][t], piece.absmax[r], w[r], x);
    }
  }
}

// Over this warp's steps; lane r · kTokens + t gets the sum of row r and token t.
template <int kTokens>
__device__ __forceinline__ float warp_sums(const Kernel& p, const Rows& rows, const float2* table, int split,
                                           int lane) {
  float sums[kRows][kTokens] = {};
  const uint32_t lane_offset = static_cast<uint32_t>(lane % kReplicas * sizeof(float2));
  const int stride = p.splits * kStep;
  int column = split * kStep + lane * kLaneColumns;
  // A step ahead for few tokens; the arithmetic of many hides the latency, and takes the registers.
  constexpr bool kAhead = kTokens <= kTokensInRegisters;
  Piece next;
  if (kAhead) next.load(p, rows, column);
#pragma unroll 1
  for (int step = split; step < p.steps; step += p.splits, column += stride) {
    if (!kAhead) next.load(p, rows, column);
    const Piece piece = next;
    if (kAhead) next.load(p, rows, column + stride);
    add_piece<kTokens>(sums, p, piece, table, column, lane_offset);
  }
  float mine = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float sum = sums[r][t];
#pragma unroll
      for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
      if (lane == r * kTokens + t) mine = sum;
    }
  }
  return mine;
}

__device__ void store(const Kernel& p, const Plane& plane, int64_t row, int token, float value) {
  const int64_t at = token * p.y_stride + row;
  if (p.y_f32) {
    float& y = static_cast<float*>(plane.y)[at];
    y = p.accumulate ? y + value : value;
  } else {
    uint16_t& y = static_cast<uint16_t*>(plane.y)[at];
    y = f32_to_bf16(p.accumulate ? bf16_to_f32(y) + value : value);
  }
}

// computes   y[T, N] (+)= x[T, K] · wᵀ, w looked up in a table of byte pairs
// moves      read N·K/2 + N·K/16 B once, 2·T·K B a warp from L1; write 2·T·N B (f32: 4)     bound: memory at one token,
//            closely followed by shared memory, of whose 128 B a clock a weight takes 4; f32 arithmetic at many
// launch     grid two blocks a multiprocessor, block 256, smem 33 KiB     4 rows to 1, 2 or 4 warps
// needs      K % 64 == 0, x 16-byte and codes 8-byte aligned
// numerics   weights and x exact, f32 sums in the order of the contract
// measured   H200 T=1: q 931 GB/s, 2.18 times a plain read; gate 1179, 2.52; head 2278, 1.84; T=8: gate 36.7 µs, head
//            371 µs; 2026-11-21
template <int kTokens>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) gemv_bnb4_kernel(const __grid_constant__ Kernel p) {
  __shared__ __align__(128) float2 table[256 * kReplicas];
  __shared__ float partial[kWarps][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int split = warp % p.splits, groups_at_once = kWarps / p.splits;
  fill_table(table, p.codebook);
  __syncthreads();
#pragma unroll 1
  for (int64_t base = 0; base < p.groups; base += int64_t{gridDim.x} * groups_at_once) {
    // Neighbouring groups go to different blocks, so that a last round of few groups keeps all multiprocessors busy.
    const int64_t group = base + warp / p.splits * int64_t{gridDim.x} + blockIdx.x;
    const bool has_group = group < p.groups;
    int part = 0;
    while (has_group && group >= p.planes[part].groups_end) ++part;
    const Plane& plane = p.planes[part];
    const int64_t first = (group - (part > 0 ? p.planes[part - 1].groups_end : 0)) * kRows;
    const Rows rows(p, plane, first);
    float sum = has_group ? warp_sums<kTokens>(p, rows, table, split, lane) : 0.0f;
    if (p.splits > 1) {
      partial[warp][lane] = sum;
      __syncthreads();
      sum = partial[warp - split][lane];
      for (int i = 1; i < p.splits; ++i) sum += partial[warp - split + i][lane];
      __syncthreads();
    }
    const int row = lane / kTokens, token = lane % kTokens;
    if (has_group && split == 0 && row < rows.count) store(p, plane, first + row, token, sum);
  }
}

// computes   out = bf16(table[code] · absmax) of a rectangle
// moves      read cols/2 + cols/16 B, write 2·cols B a row      bound: memory
// launch     grid ceil(rows·cols / 2048), block 256, smem 0     8 columns a thread; every lane holds a table value
// needs      col, cols % 8 == 0, rows·cols < 2^34, out 16-byte and codes 4-byte aligned
// numerics   the f32 value, rounded once, is rounded to bf16
// measured   not alone: products of 512 tokens take 0.4 to 4 µs longer than with NVFP4 weights (H200); 2026-11-21
__global__ void __launch_bounds__(kThreads) dequantize_bnb4_kernel(const DequantizeBnb4Cuda p) {
  const float mine = bnb4_value(p.w.codebook, threadIdx.x % 16);
  const auto eights = static_cast<uint32_t>(p.cols / kLaneValues), count = static_cast<uint32_t>(p.rows) * eights;
  // Threads past the end repeat the last one: every lane takes part in the shuffles.
  const uint32_t wanted = blockIdx.x * kThreads + threadIdx.x, i = min(wanted, count - 1);
  const int64_t from = (p.row + i / eights) * p.K + p.col + i % eights * kLaneValues;
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(p.w.codes + from / 2);
  const float absmax = p.w.absmax[from / kBnb4BlockSize];
  Eight out;
#pragma unroll
  for (int j = 0; j < kLaneValues; ++j) {
    out.value[j] = __shfl_sync(0xffffffffu, mine, static_cast<int>(codes >> (4 * j) & 15u)) * absmax;
  }
  if (wanted == i) store8(p.out + int64_t{i} * kLaneValues, out);
}

template <int kTokens>
void launch(const Kernel& p, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const auto grid = static_cast<unsigned>(std::min<int64_t>(p.groups, int64_t{kBlocksPerProcessor} * multiprocessors));
  gemv_bnb4_kernel<kTokens><<<grid, kThreads, 0, stream>>>(p);
  QN_CUDA_CHECK(cudaGetLastError());
}

// By K alone. H200: enough warps where there are few rows, which are those of o_proj and down_proj.
int splits_of(int steps) { return steps <= 5 ? 1 : steps <= 10 ? 2 : 4; }

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

bool gemv_bnb4_takes(const WeightView* weights, int weight_count) {
  return weight_count <= kGemvMatrices && std::all_of(weights, weights + weight_count, [&](const WeightView& w) {
           return w.storage == Storage::kBnb4 && w.bnb4.codebook == weights->bnb4.codebook;
         });
}

void gemv_bnb4_cuda(const GemvBnb4Cuda& args, CudaStream stream) {
  if (args.T > kGemvTokens) fail(Code::kInternal, "a GEMV of %lld tokens", static_cast<long long>(args.T));
  Kernel p{};
  p.x = args.x;
  p.K = static_cast<int>(args.weights->cols);
  p.steps = (p.K + kStep - 1) / kStep;
  p.splits = splits_of(p.steps);
  p.codebook = args.weights->bnb4.codebook;
  p.y_f32 = args.y_type == CudaFloat::kF32;
  p.accumulate = args.accumulate;
  auto* y = static_cast<uint8_t*>(args.y);
  for (int i = 0; i < args.weight_count; ++i) {
    const WeightView& w = args.weights[i];
    p.groups += (w.rows + kRows - 1) / kRows;
    p.planes[i] = {w.bnb4.codes, w.bnb4.absmax, y, w.rows, p.groups};
    p.y_stride += w.rows;
    y += w.rows * (p.y_f32 ? 4 : 2);
  }
  if (args.T == 0 || p.groups == 0) return;
  using Launch = void (*)(const Kernel&, cudaStream_t);
  static constexpr Launch kByTokens[kGemvTokens] = {launch<1>, launch<2>, launch<3>, launch<4>,
                                                    launch<5>, launch<6>, launch<7>, launch<8>};
  kByTokens[args.T - 1](p, static_cast<cudaStream_t>(stream));
}

void dequantize_bnb4_cuda(const DequantizeBnb4Cuda& args, CudaStream stream) {
  const int64_t eights = args.rows * args.cols / kLaneValues;
  if (eights == 0) return;
  const auto grid = static_cast<unsigned>((eights + kThreads - 1) / kThreads);
  dequantize_bnb4_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
