#include "ops/gemv_backward_input.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/async_cuda.h"
#include "ops/e2m1_mma_cuda.h"

namespace qn {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kStages = 4;  // units in flight a warp: 80 KiB a block, two blocks a multiprocessor
constexpr int kTokens = kGemvInputTokens;
constexpr int kPlanes = 2 * kGemvInputWeights;

// A unit is 16 rows of 256 columns: what a warp copies and multiplies at a time. In shared memory: codes, row by row,
// the 16-byte pieces of a row permuted so that the lanes of a read touch all banks; scales; dy of the rows, token by
// token.
constexpr int kUnitRows = 16, kColumns = 256;
constexpr int kRowBytes = kColumns / 2, kRowScales = kColumns / 16;
constexpr int kScalesAt = kUnitRows * kRowBytes, kDyAt = kScalesAt + kUnitRows * kRowScales;
constexpr int kUnitBytes = kDyAt + kTokens * kUnitRows * 2;

// Blocks that a launch has at most, two for each multiprocessor of an H200. A constant, so that sums do not depend on
// the device.
constexpr int64_t kBlocks = 264;

// Packed weights and residuals, one after the other.
struct Plane {
  const uint8_t* codes;
  const uint8_t* scales;
  float scale;  // of a sum
  int64_t rows;
  const uint16_t* dy;
  int64_t dy_stride;
  int slices_end;  // slices of this plane and those before
};

struct Kernel {
  Plane planes[kPlanes];
  int plane_count;
  float* partials;  // [slice][T][K]
  int64_t K;
  int64_t slice_rows;  // a multiple of kUnitRows
  int T, groups;       // of kColumns columns
};

// Eight lanes read two pieces of rows 0, 2, 4 and 6 (or those 1, 8 or 9 further) at a time.
__device__ __forceinline__ int piece_at(int row, int piece) {
  return row * kRowBytes + (piece ^ ((row >> 1 & 3) << 1)) * 16;
}

// The block's part of the product.
struct Part {
  Plane plane;
  int64_t first, end;  // rows
  int64_t column;
};

// Starts copying the unit of rows [row, row + 16) to `slot`; rows past the end become zeros. The caller commits.
__device__ __forceinline__ void copy_unit(const Kernel& p, const Part& part, uint8_t* slot, int64_t row, int lane) {
  const uint32_t to = shared_address(slot);
  const int piece = lane % 8;
  const uint8_t* from = part.plane.codes + (row + lane / 8) * (p.K / 2) + part.column / 2 + piece * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int inside = lane / 8 + 4 * i;
    copy_async16(to + piece_at(inside, piece), from + i * (2 * p.K), row + inside < part.end);
  }
  const int token = (lane - 16) / 2, half = lane % 2;
  const void* other = lane < 16
                          ? static_cast<const void*>(part.plane.scales + (row + lane) * (p.K / 16) + part.column / 16)
                          : part.plane.dy + token * part.plane.dy_stride + row + half * 8;
  copy_async16(to + kScalesAt + lane * 16, other,
               lane < 16 ? row + lane < part.end : token < p.T && row + half * 8 < part.end);
}

// The same through registers, for columns and rows that end anywhere: what is past them becomes zeros.
__device__ __noinline__ void copy_ragged_unit(const Kernel& p, const Part& part, uint8_t* slot, int64_t row, int lane) {
  for (int block = lane; block < kUnitRows * kRowScales; block += 32) {
    const int inside = block / kRowScales, at = block % kRowScales;
    uint2 codes{0, 0};
    uint8_t scale = 0;
    if (row + inside < part.end && part.column + at * 16 < p.K) {
      const int64_t from = (row + inside) * p.K + part.column + at * 16;
      codes = *reinterpret_cast<const uint2*>(part.plane.codes + from / 2);
      scale = part.plane.scales[from / 16];
    }
    *reinterpret_cast<uint2*>(slot + piece_at(inside, at / 2) + at % 2 * 8) = codes;
    slot[kScalesAt + block] = scale;
  }
  for (int i = lane; i < kTokens * kUnitRows; i += 32) {
    const int token = i / kUnitRows;
    const int64_t at = row + i % kUnitRows;
    reinterpret_cast<uint16_t*>(slot + kDyAt)[i] =
        token < p.T && at < part.end ? part.plane.dy[token * part.plane.dy_stride + at] : 0;
  }
}

// sums[i] += columns 2i, 2i + 1 of the lane's 32, by the unit's rows. As operand a of multiply_tiles: row g of a is
// column 2i of the lanes 4g + q, row g + 8 their column 2i + 1; column k of a is row k of the unit.
__device__ __forceinline__ void multiply_unit(float4 (&sums)[16], const uint8_t* unit, int g, int q) {
  const int rows[4] = {2 * q, 2 * q + 1, 2 * q + 8, 2 * q + 9};
  uint4 codes[4];
  uint32_t scales[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    codes[r] = *reinterpret_cast<const uint4*>(unit + piece_at(rows[r], g));
    scales[r] = *reinterpret_cast<const uint16_t*>(unit + kScalesAt + rows[r] * kRowScales + 2 * g);
  }
  const auto* dy = reinterpret_cast<const uint32_t*>(unit + kDyAt + g * (kUnitRows * 2));
  const uint2 b{dy[q], dy[q + 4]};
  // Bytes 0, then 1, of the scales of two rows.
  const auto scale_pair = [&](int first, int byte) {
    return e4m3_to_bf16x2(__byte_perm(scales[first], scales[first + 1], byte == 0 ? 0x6420 : 0x6521));
  };
  const uint32_t low_scales[2] = {scale_pair(0, 0), scale_pair(0, 1)};
  const uint32_t high_scales[2] = {scale_pair(2, 0), scale_pair(2, 1)};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const auto of = [&](int r) {
      return word == 0 ? codes[r].x : word == 1 ? codes[r].y : word == 2 ? codes[r].z : codes[r].w;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Four columns of two rows as one word, so that a decoded pair is a column's.
      const uint32_t halves = half == 0 ? 0x5410 : 0x7632;
      const uint4 low = multiply_bf16x8(e2m1x8_to_bf16(__byte_perm(of(0), of(1), halves)), low_scales[word / 2]);
      const uint4 high = multiply_bf16x8(e2m1x8_to_bf16(__byte_perm(of(2), of(3), halves)), high_scales[word / 2]);
      float4& first = sums[word * 4 + half * 2];
      float4& second = sums[word * 4 + half * 2 + 1];
      first = multiply_tiles({low.x, low.y, high.x, high.y}, b, first);
      second = multiply_tiles({low.z, low.w, high.z, high.w}, b, second);
    }
  }
}

// The warps' sums in shared memory, [warp][token][g][column of the lanes g], padded so that fewer lanes meet in a bank.
constexpr int kLaneColumns = 36, kTokenColumns = 8 * kLaneColumns + 8;
constexpr int kSumBytes = kWarps * kTokens * kTokenColumns * 4;
constexpr int kSharedBytes = std::max(kWarps * kStages * kUnitBytes, kSumBytes);

// computes   partials[slice][T, K] = dy · w over the rows of a slice, 256 columns a block
// moves      read N·K/2 + N·K/16 B once, 2·T·N·K/256 B from L2, write 4·T·K B a slice          bound: memory
// launch     grid slices · K/256, block 256, smem 80 KiB            units of 16 rows dealt to the warps in turn
// needs      K % 16 == 0; kWhole: K % 256 == 0, N % 8 == 0, codes, scales and dy 16-byte aligned
// numerics   weight exact in bf16; f32 sums in the order of the contract
// measured   not yet
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, 2) gemv_backward_input_kernel(const __grid_constant__ Kernel p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(blockIdx.x) / p.groups;
  int plane = 0;
  while (slice >= p.planes[plane].slices_end) ++plane;
  Part part;
  part.plane = p.planes[plane];
  part.first = (slice - (plane > 0 ? p.planes[plane - 1].slices_end : 0)) * p.slice_rows;
  part.end = min(part.first + p.slice_rows, part.plane.rows);
  part.column = int64_t{blockIdx.x % p.groups} * kColumns;
  const int units = static_cast<int>((part.end - part.first + kUnitRows - 1) / kUnitRows);

  uint8_t* const ring = shared + warp * (kStages * kUnitBytes);
  int copying = warp;
  const auto copy_next = [&](int slot) {
    if (copying < units) {
      const int64_t row = part.first + copying * kUnitRows;
      kWhole ? copy_unit(p, part, ring + slot * kUnitBytes, row, lane)
             : copy_ragged_unit(p, part, ring + slot * kUnitBytes, row, lane);
    }
    commit_copies();
    copying += kWarps;
  };
#pragma unroll 1
  for (int slot = 0; slot < kStages; ++slot) copy_next(slot);

  float4 sums[16] = {};
  int slot = 0;
#pragma unroll 1
  for (int unit = warp; unit < units; unit += kWarps) {
    wait_copies<kStages - 1>();
    __syncwarp();
    multiply_unit(sums, ring + slot * kUnitBytes, lane / 4, lane % 4);
    __syncwarp();
    copy_next(slot);
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }
  __syncthreads();  // every ring is done with

  auto* const warp_sums = reinterpret_cast<float*>(shared);
  float* const own = warp_sums + warp * (kTokens * kTokenColumns) + lane / 4 * kLaneColumns;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float* const to = own + 2 * (lane % 4) * kTokenColumns + 2 * i;
    *reinterpret_cast<float2*>(to) = {sums[i].x, sums[i].z};
    *reinterpret_cast<float2*>(to + kTokenColumns) = {sums[i].y, sums[i].w};
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (part.column + column >= p.K) return;
  for (int token = 0; token < p.T; ++token) {
    const float* from = warp_sums + token * kTokenColumns + column / 32 * kLaneColumns + column % 32;
    float sum = from[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += from[w * (kTokens * kTokenColumns)];
    p.partials[(int64_t{slice} * p.T + token) * p.K + part.column + column] = sum * part.plane.scale;
  }
}

// computes   dx = bf16(Σ_slice partials[slice]) or, with accumulate, bf16(dx + …)
// moves      read 4·slices·T·K B from L2, write 2·T·K B             bound: latency
// launch     grid ceil(count / 4 / 128), block 128, smem 0           four elements a thread
// needs      count % 4 == 0, partials 16-byte and dx 8-byte aligned
// numerics   f32 in the order of slices, one rounding to nearest even
// measured   not yet
__global__ void __launch_bounds__(128) sum_slices_kernel(uint16_t* __restrict__ dx, const float* __restrict__ partials,
                                                         int64_t count, int slices, bool accumulate) {
  const int64_t at = (int64_t{blockIdx.x} * 128 + threadIdx.x) * 4;
  if (at >= count) return;
  float4 sum = *reinterpret_cast<const float4*>(partials + at);
#pragma unroll 8
  for (int slice = 1; slice < slices; ++slice) {
    const float4 next = *reinterpret_cast<const float4*>(partials + slice * count + at);
    sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
  }
  union {
    uint16_t value[4];
    uint2 word;
  } result;
  if (accumulate) result.word = *reinterpret_cast<const uint2*>(dx + at);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    result.value[i] = f32_to_bf16(accumulate ? bf16_to_f32(result.value[i]) + values[i] : values[i]);
  *reinterpret_cast<uint2*>(dx + at) = result.word;
}

// The weights as planes, cut into slices.
Kernel kernel_of(const GemvBackwardInputCuda& args) {
  const WeightView* weights = args.weights;
  const int weight_count = args.weight_count;
  if (weight_count < 1 || weight_count > kGemvInputWeights)
    fail(Code::kInternal, "a product of %d weights", weight_count);
  Kernel p{};
  p.K = weights[0].cols;
  p.groups = static_cast<int>((p.K + kColumns - 1) / kColumns);
  int64_t rows = 0;
  for (int i = 0; i < weight_count; ++i) {
    for (const Nvfp4View* view : {&weights[i].packed, &weights[i].residual}) {
      if (!view->codes || weights[i].rows == 0) continue;
      p.planes[p.plane_count++] = {view->codes,
                                   view->scales,
                                   view->global_scale / kWeightUnit,
                                   weights[i].rows,
                                   args.dy[i],
                                   args.dy_strides[i],
                                   0};
      rows += weights[i].rows;
    }
  }
  if (rows * p.K == 0) return p;
  const int64_t most = std::max<int64_t>(kBlocks / p.groups, p.plane_count);
  // The shortest slices that are few enough.
  for (p.slice_rows = kUnitRows;; p.slice_rows += kUnitRows) {
    int64_t slices = 0;
    for (int i = 0; i < p.plane_count; ++i)
      p.planes[i].slices_end = static_cast<int>(slices += (p.planes[i].rows + p.slice_rows - 1) / p.slice_rows);
    if (slices <= most) return p;
  }
}

int slices_of(const Kernel& p) { return p.plane_count > 0 ? p.planes[p.plane_count - 1].slices_end : 0; }

bool whole(const Kernel& p) {
  bool result = p.K % kColumns == 0;
  for (const Plane& plane : p.planes) result = result && plane.rows % 8 == 0 && plane.dy_stride % 8 == 0;
  return result;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t gemv_backward_input_scratch_bytes(const WeightView* weights, int weight_count, int64_t T) {
  const Kernel p = kernel_of({.weights = weights, .weight_count = weight_count});
  return slices_of(p) * T * p.K * int64_t{sizeof(float)};
}

void gemv_backward_input_cuda(const GemvBackwardInputCuda& args, CudaStream stream) {
  if (args.T > kGemvInputTokens) fail(Code::kInternal, "a GEMV of %lld tokens", static_cast<long long>(args.T));
  Kernel p = kernel_of(args);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int64_t count = args.T * p.K;
  if (count == 0) return;
  const int slices = slices_of(p);
  if (slices == 0) {
    if (!args.accumulate) QN_CUDA_CHECK(cudaMemsetAsync(args.dx, 0, static_cast<size_t>(2 * count), cuda_stream));
    return;
  }
  p.partials = static_cast<float*>(args.scratch);
  p.T = static_cast<int>(args.T);
  const auto kernel = whole(p) ? gemv_backward_input_kernel<true> : gemv_backward_input_kernel<false>;
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<static_cast<unsigned>(slices * p.groups), kThreads, kSharedBytes, cuda_stream>>>(p);
  QN_CUDA_CHECK(cudaGetLastError());
  sum_slices_kernel<<<static_cast<unsigned>((count / 4 + 127) / 128), 128, 0, cuda_stream>>>(args.dx, p.partials, count,
                                                                                             slices, args.accumulate);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
