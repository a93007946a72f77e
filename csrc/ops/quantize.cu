#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "ops/bf16x8_cuda.h"
#include "ops/e2m1x8_cuda.h"
#include "ops/group_reduce_cuda.h"
#include "ops/quantize.h"

namespace qn {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// From here on exact remainders could overflow; no such block is in any model.
constexpr float kPlainLimit = 0x1p100f;

unsigned grid_of(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

// The largest magnitude, or NaN or infinity when there is one.
__device__ __forceinline__ float max_magnitude(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(fabsf(a)), "f"(fabsf(b)));
  return c;
}

// Eight neighbouring columns as they lie in memory.
template <typename In>
struct Octet;

template <>
struct Octet<float> {
  Eight eight;
  __device__ void load(const float* at) { eight = load8(at); }
  __device__ Eight values() const { return eight; }
  __device__ float amax() const {
    float most = 0;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) most = max_magnitude(most, eight.value[i]);
    return most;
  }
  __device__ uint32_t signs() const {
    const auto high = [&](int i) {
      const auto bits = [&](int j) { return __float_as_uint(eight.value[i + j]); };
      return __byte_perm(__byte_perm(bits(0), bits(1), 0x73), __byte_perm(bits(2), bits(3), 0x73), 0x5410);
    };
    return e2m1_signs(high(0), high(4));
  }
};

template <>
struct Octet<uint16_t> {
  uint4 bits;
  __device__ void load(const uint16_t* at) { bits = load_bits8(at); }
  __device__ Eight values() const { return bf16x8_to_f32(bits); }
  __device__ float amax() const {
    const auto pair = [](uint32_t word) { return __habs2(*reinterpret_cast<const __nv_bfloat162*>(&word)); };
    const __nv_bfloat162 most =
        __hmax2_nan(__hmax2_nan(pair(bits.x), pair(bits.y)), __hmax2_nan(pair(bits.z), pair(bits.w)));
    return max_magnitude(__low2float(most), __high2float(most));
  }
  __device__ uint32_t signs() const {
    return e2m1_signs(__byte_perm(bits.x, bits.y, 0x7531), __byte_perm(bits.z, bits.w, 0x7531));
  }
};

// *first_bad = min(*first_bad, index of the first infinity or NaN of eight columns of x), if any. Rarely called, so it
// reads them again instead of making the caller keep them in memory.
template <typename In>
__device__ __noinline__ void report_bad(unsigned long long* first_bad, const In* x, int64_t element) {
  Octet<In> octet;
  octet.load(x + element);
  const Eight eight = octet.values();
#pragma unroll
  for (int i = kLaneValues - 1; i >= 0; --i) {
    if (!isfinite(eight.value[i])) atomicMin(first_bad, static_cast<unsigned long long>(element + i));
  }
}

// computes   codes, scale = quantize_nvfp4_block(16 columns of x)
// moves      read 4·N·K B (bf16: 2·N·K B), write N·K/2 + N·K/16 B      bound: issue
// launch     grid ceil(N·K/16 / 256), block 256, smem 0                one block of 16 a thread, 16-B loads
// needs      K % 16 == 0, x 16-byte aligned, codes 8-byte aligned
// numerics   f32, IEEE division, nothing contracted: the bytes of the CPU
// measured   not yet
template <Rounding rounding, ScaleRule rule, typename In>
__global__ void quantize_nvfp4_any_kernel(uint8_t* __restrict__ codes, uint8_t* __restrict__ scales,
                                          const In* __restrict__ x, int64_t blocks, int64_t K, float global_scale,
                                          RandomKey random, unsigned long long* first_bad) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (block >= blocks) return;
  float values[kBlockSize];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t element = block * kBlockSize + half * kLaneValues;
    Octet<In> octet;
    octet.load(x + element);
    const Eight eight = octet.values();
    if (!(octet.amax() < INFINITY)) report_bad(first_bad, x, element);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[half * kLaneValues + i] = eight.value[i];
  }
  union {
    uint8_t byte[kBlockSize / 2];
    uint2 word;
  } packed;
  quantize_nvfp4_block(packed.byte, scales + block, values, global_scale, rounding, rule, random,
                       random.first_row * K + block * kBlockSize);
  reinterpret_cast<uint2*>(codes)[block] = packed.word;
}

// The codes of eight columns of a block whose scale is `scale`, exactly as f32_to_e2m1(x · inverse_global / scale).
template <typename In>
__device__ __forceinline__ uint32_t encode_octet(const Octet<In>& octet, float inverse_global, const Divisor& scale_2) {
  const Eight x = octet.values();
  uint32_t word = 0;
#pragma unroll
  for (int i = kLaneValues - 1; i >= 0; --i) {
    word = word * 16 + e2m1_magnitude(scale_2.divide(fabsf(x.value[i]) * inverse_global));
  }
  return (word - kE2m1Bias * 0x11111111u) | octet.signs();
}

// The same where a block holds huge values or, to be reported, infinities and NaNs.
template <typename In>
__device__ __noinline__ uint32_t encode_octet_slowly(const In* x, int64_t element, float inverse_global, float scale,
                                                     unsigned long long* first_bad) {
  report_bad(first_bad, x, element);
  Octet<In> octet;
  octet.load(x + element);
  const Eight eight = octet.values();
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) word |= f32_to_e2m1(eight.value[i] * inverse_global / scale) << (4 * i);
  return word;
}

// computes   codes, scale = quantize_nvfp4_block(16 columns of x): to nearest, amax rule, global scale a power of two
// moves      read 4·N·K B (bf16: 2·N·K B), write N·K/2 + N·K/16 B      bound: memory
// launch     grid ceil(N·K/16 / 256), block 256, smem 0                one block of 16 a thread, 16-B loads
// needs      K % 16 == 0, x 16-byte aligned, codes 8-byte aligned
// numerics   f32 with the quotients of IEEE divisions: the bytes of the CPU
// measured   H200 bf16 [19456, 2560]: 3453 GB/s, 2026-11-21; two or four blocks a thread are no faster
template <typename In>
__global__ void __launch_bounds__(kThreads)
    quantize_nvfp4_kernel(uint8_t* __restrict__ codes, uint8_t* __restrict__ scales, const In* __restrict__ x,
                          int64_t blocks, float inverse_global, const float* __restrict__ global_scale,
                          unsigned long long* first_bad) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x, element = block * kBlockSize;
  if (block >= blocks) return;
  if (global_scale) inverse_global = 1.0f / *global_scale;
  Octet<In> low, high;
  low.load(x + element);
  high.load(x + element + kLaneValues);
  const float amax = max_magnitude(low.amax(), high.amax()) * inverse_global;
  const bool plain = amax < kPlainLimit;
  const uint8_t scale = plain ? f32_to_e4m3(Divisor(kE2M1Max).divide(amax)) : nvfp4_amax_scale(amax);
  uint2 word = {0, 0};  // under a scale of zero
  if (!plain) {
    word.x = encode_octet_slowly(x, element, inverse_global, e4m3_to_f32(scale), first_bad);
    word.y = encode_octet_slowly(x, element + kLaneValues, inverse_global, e4m3_to_f32(scale), first_bad);
  } else if (scale != 0) {
    const Divisor scale_2(2.0f * e4m3_to_f32(scale));
    word.x = encode_octet(low, inverse_global, scale_2);
    word.y = encode_octet(high, inverse_global, scale_2);
  }
  reinterpret_cast<uint2*>(codes)[block] = word;
  scales[block] = scale;
}

// computes   *amax = max(*amax, max |x|)
// moves      read 4·count B (bf16: 2·count B)                          bound: memory
// launch     grid of every multiprocessor's fill, block 256            four octets of 8 a thread and step
// needs      count % 8 == 0, x 16-byte aligned
// numerics   exact; the maximum of the bits of magnitudes, so the order of the atomics changes nothing
// measured   H200 bf16 [151936, 2560]: 4419 GB/s, 104 % of copy (4245); [9728, 2560]: 3762 GB/s, 89 %; 2026-11-21
template <typename In>
__global__ void __launch_bounds__(kThreads)
    amax_kernel(uint32_t* __restrict__ amax, unsigned long long* first_bad, const In* __restrict__ x, int64_t octets) {
  constexpr int kOctets = 4;
  float most = 0;
  for (int64_t base = int64_t{blockIdx.x} * (kThreads * kOctets); base < octets;
       base += int64_t{gridDim.x} * (kThreads * kOctets)) {
    Octet<In> octet[kOctets];
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
      const int64_t at = base + i * kThreads + threadIdx.x;
      if (at < octets) octet[i].load(x + at * kLaneValues);
    }
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
      const int64_t at = base + i * kThreads + threadIdx.x;
      if (at >= octets) break;
      const float part = octet[i].amax();
      if (!(part < INFINITY)) report_bad(first_bad, x, at * kLaneValues);
      most = max_magnitude(most, part);
    }
  }
  // A NaN has larger bits than any number. One atomic a block: they take turns at the one address.
  __shared__ uint32_t warps[kWarps];
  const uint32_t warp_most = __reduce_max_sync(~0u, __float_as_uint(most));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = warp_most;
  __syncthreads();
  if (threadIdx.x >= kWarps) return;
  const uint32_t largest = __reduce_max_sync((1u << kWarps) - 1, warps[threadIdx.x]);
  if (threadIdx.x == 0 && largest > 0) atomicMax(amax, largest);
}

constexpr int kStripColumns = 32 * kLaneValues;
constexpr int kRows = 4;  // of a warp; two or eight are no faster

// computes   out = e2m1(code) · e4m3(scale) · factor
// moves      read N·K/2 + N·K/16 B, write 2·N·K B (f32: 4·N·K B)       bound: memory
// launch     grid ceil(K/256) · ceil(N/(8·kRows)), block 256, smem 0   a warp takes 256 columns of kRows rows, a lane 8
//            of them: 128-B loads of codes, 512-B stores, all loads before the first store
// needs      K % 16 == 0, out 16-byte aligned
// numerics   f32: the scaled code is exact, the factor rounds once; bf16 rounds once more to nearest even
// measured   H200 bf16 [19456, 2560]: 3562 GB/s, 2026-11-21
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    dequantize_nvfp4_kernel(Out* __restrict__ out, const __grid_constant__ DequantizeTileCuda args, int64_t rows,
                            unsigned strips) {
  const unsigned row_block = blockIdx.x / strips, strip = blockIdx.x - row_block * strips;
  const int64_t column = int64_t{strip} * kStripColumns + threadIdx.x % 32 * kLaneValues;
  if (column >= args.cols) return;
  const int64_t first = int64_t{row_block} * (kWarps * kRows) + threadIdx.x / 32;
  uint32_t codes[kRows];
  uint8_t scales[kRows];
  float factors[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    int64_t row = first + i * kWarps;
    if (row >= rows) break;
    int part = 0;
    while (row >= args.parts[part].rows) row -= args.parts[part++].rows;
    const int64_t element = row * args.stride + column;
    // Read once: what the caller finds in L2 afterwards is the decoded rows.
    codes[i] = __ldcs(reinterpret_cast<const uint32_t*>(args.parts[part].codes + element / 2));
    scales[i] = __ldg(args.parts[part].scales + element / kBlockSize);
    factors[i] = args.parts[part].factor * kE2m1Repay;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = first + i * kWarps;
    if (row >= rows) break;
    Eight eight;
    decode_e2m1x8(eight.value, codes[i], e4m3_to_f32(scales[i]) * kE2m1ScaleFactor);
#pragma unroll
    for (int j = 0; j < kLaneValues; ++j) eight.value[j] *= factors[i];
    store8(out + row * args.cols + column, eight);
  }
}

template <Rounding rounding, ScaleRule rule, typename In>
void launch_any(const In* x, const QuantizeArgs& args, unsigned long long* first_bad, cudaStream_t stream) {
  const int64_t blocks = args.N * (args.K / kBlockSize);
  quantize_nvfp4_any_kernel<rounding, rule><<<grid_of(blocks), kThreads, 0, stream>>>(
      args.codes, args.scales, x, blocks, args.K, args.global_scale, args.random, first_bad);
}

template <Rounding rounding, typename In>
void launch_rule(const In* x, const QuantizeArgs& args, unsigned long long* first_bad, cudaStream_t stream) {
  switch (args.scale_rule) {
    case ScaleRule::kAmax:
      return launch_any<rounding, ScaleRule::kAmax>(x, args, first_bad, stream);
    case ScaleRule::kFourOverSix:
      return launch_any<rounding, ScaleRule::kFourOverSix>(x, args, first_bad, stream);
    case ScaleRule::kAmaxUp:
      return launch_any<rounding, ScaleRule::kAmaxUp>(x, args, first_bad, stream);
  }
}

// Whether a division by it is a multiplication by its reciprocal.
bool is_power_of_two(float scale) {
  int exponent = 0;
  return std::frexp(scale, &exponent) == 0.5f && std::isfinite(1.0f / scale);
}

template <typename In>
void quantize(const In* x, const QuantizeArgs& args, uint64_t* first_bad, CudaStream stream) {
  if (args.N * args.K == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  auto* bad = reinterpret_cast<unsigned long long*>(first_bad);
  if (args.rounding == Rounding::kStochastic) {
    launch_rule<Rounding::kStochastic>(x, args, bad, cuda_stream);
  } else if (args.scale_rule != ScaleRule::kAmax || !is_power_of_two(args.global_scale)) {
    launch_rule<Rounding::kNearestEven>(x, args, bad, cuda_stream);
  } else {
    const int64_t blocks = args.N * (args.K / kBlockSize);
    quantize_nvfp4_kernel<<<grid_of(blocks), kThreads, 0, cuda_stream>>>(args.codes, args.scales, x, blocks,
                                                                         1.0f / args.global_scale, nullptr, bad);
  }
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename In>
void find_amax(float* amax, uint64_t* first_bad, const In* x, int64_t count, CudaStream stream) {
  if (count == 0) return;
  // Six blocks of 256 fill a multiprocessor; few GPUs have more than 160.
  const int64_t octets = count / kLaneValues, blocks = std::min<int64_t>(grid_of((octets + 3) / 4), 6 * 160);
  amax_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<uint32_t*>(amax), reinterpret_cast<unsigned long long*>(first_bad), x, octets);
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename Out>
void dequantize(Out* out, const DequantizeTileCuda& args, CudaStream stream) {
  int64_t rows = 0;
  for (int i = 0; i < args.part_count; ++i) rows += args.parts[i].rows;
  if (rows * args.cols == 0) return;
  const auto strips = static_cast<unsigned>((args.cols + kStripColumns - 1) / kStripColumns);
  const int64_t blocks = strips * ((rows + kWarps * kRows - 1) / (kWarps * kRows));
  dequantize_nvfp4_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      out, args, rows, strips);
  QN_CUDA_CHECK(cudaGetLastError());
}

DequantizeTileCuda whole(const DequantizeArgs& args) {
  DequantizeTileCuda tile = {};
  tile.parts[0] = {args.codes, args.scales, args.N, args.global_scale};
  tile.part_count = 1;
  tile.cols = tile.stride = args.K;
  return tile;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void quantize_nvfp4_cuda(const QuantizeArgs& args, uint64_t* first_bad, CudaStream stream) {
  quantize(args.x, args, first_bad, stream);
}

void quantize_nvfp4_bf16_cuda(const uint16_t* x, const QuantizeArgs& args_without_x, uint64_t* first_bad,
                              CudaStream stream) {
  quantize(x, args_without_x, first_bad, stream);
}

void quantize_nvfp4_bf16_cuda(uint8_t* codes, uint8_t* scales, const uint16_t* x, int64_t N, int64_t K,
                              const float* global_scale, uint64_t* first_bad, CudaStream stream) {
  const int64_t blocks = N * (K / kBlockSize);
  if (blocks == 0) return;
  quantize_nvfp4_kernel<<<grid_of(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      codes, scales, x, blocks, 0.0f, global_scale, reinterpret_cast<unsigned long long*>(first_bad));
  QN_CUDA_CHECK(cudaGetLastError());
}

void amax_cuda(float* amax, uint64_t* first_bad, const float* x, int64_t count, CudaStream stream) {
  find_amax(amax, first_bad, x, count, stream);
}

void amax_bf16_cuda(float* amax, uint64_t* first_bad, const uint16_t* x, int64_t count, CudaStream stream) {
  find_amax(amax, first_bad, x, count, stream);
}

void dequantize_nvfp4_cuda(const DequantizeArgs& args, CudaStream stream) { dequantize(args.out, whole(args), stream); }

void dequantize_nvfp4_bf16_cuda(uint16_t* out, const DequantizeArgs& args_without_out, CudaStream stream) {
  dequantize(out, whole(args_without_out), stream);
}

void dequantize_tile_cuda(const DequantizeTileCuda& args, CudaStream stream) { dequantize(args.out, args, stream); }

}  // namespace qn
