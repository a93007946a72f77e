#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "ops/quantize.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

unsigned grid_of(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

// computes   codes, scale = quantize_nvfp4_block(16 columns of x)
// moves      read 4·N·K B, write N·K/2 + N·K/16 B                      bound: memory (stochastic: Philox)
// launch     grid ceil(N·K/16 / 256), block 256, smem 0                one block of 16 a thread, 16-B loads
// needs      K % 16 == 0, x 16-byte aligned, codes 8-byte aligned
// numerics   f32, IEEE division, nothing contracted: the bytes of the CPU
// measured   not yet
template <Rounding rounding, ScaleRule rule>
__global__ void quantize_nvfp4_kernel(uint8_t* __restrict__ codes, uint8_t* __restrict__ scales,
                                      const float* __restrict__ x, int64_t blocks, int64_t K, float global_scale,
                                      RandomKey random, unsigned long long* first_bad) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (block >= blocks) return;
  float values[kBlockSize];
  for (int quad = 0; quad < kBlockSize / 4; ++quad) {
    const float4 four = reinterpret_cast<const float4*>(x)[block * (kBlockSize / 4) + quad];
    values[4 * quad] = four.x;
    values[4 * quad + 1] = four.y;
    values[4 * quad + 2] = four.z;
    values[4 * quad + 3] = four.w;
  }
  for (int i = 0; i < kBlockSize; ++i) {
    if (!isfinite(values[i])) {
      atomicMin(first_bad, static_cast<unsigned long long>(block * kBlockSize + i));
      break;
    }
  }
  union {
    uint8_t byte[kBlockSize / 2];
    uint2 word;
  } packed;
  quantize_nvfp4_block(packed.byte, scales + block, values, global_scale, rounding, rule, random,
                       random.first_row * K + block * kBlockSize);
  reinterpret_cast<uint2*>(codes)[block] = packed.word;
}

// computes   out = e2m1(code) · e4m3(scale) · global
// moves      read N·K/2 + N·K/16 B, write 4·N·K B (bf16: 2·N·K B)      bound: memory
// launch     grid ceil(N·K/elements / 256), block 256, smem 0          4 (bf16: 8) elements a thread, one 16-B store
// needs      K % 16 == 0, out 16-byte aligned
// numerics   f32: the scaled code is exact, the global scale rounds once; bf16 rounds once more to nearest even
// measured   not yet
template <typename Out>
__global__ void dequantize_nvfp4_kernel(Out* __restrict__ out, const uint8_t* __restrict__ codes,
                                        const uint8_t* __restrict__ scales, int64_t count, float global_scale) {
  constexpr int kElements = 16 / sizeof(Out);
  const int64_t element = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kElements;
  if (element >= count) return;
  const float scale = e4m3_to_f32(scales[element / kBlockSize]);
  union {
    Out value[kElements];
    uint4 word;
  } result;
  for (int i = 0; i < kElements; ++i) {
    const uint32_t code = (codes[(element + i) / 2] >> (4 * (i & 1))) & 15u;
    const float value = e2m1_to_f32(code) * scale * global_scale;
    if constexpr (sizeof(Out) == 2) {
      result.value[i] = f32_to_bf16(value);
    } else {
      result.value[i] = value;
    }
  }
  *reinterpret_cast<uint4*>(out + element) = result.word;
}

template <Rounding rounding, ScaleRule rule>
void launch_quantize(const QuantizeArgs& args, uint64_t* first_bad, cudaStream_t stream) {
  const int64_t blocks = args.N * (args.K / kBlockSize);
  quantize_nvfp4_kernel<rounding, rule>
      <<<grid_of(blocks), kThreads, 0, stream>>>(args.codes, args.scales, args.x, blocks, args.K, args.global_scale,
                                                 args.random, reinterpret_cast<unsigned long long*>(first_bad));
  QN_CUDA_CHECK(cudaGetLastError());
}

template <Rounding rounding>
void launch_rule(const QuantizeArgs& args, uint64_t* first_bad, cudaStream_t stream) {
  switch (args.scale_rule) {
    case ScaleRule::kAmax:
      return launch_quantize<rounding, ScaleRule::kAmax>(args, first_bad, stream);
    case ScaleRule::kFourOverSix:
      return launch_quantize<rounding, ScaleRule::kFourOverSix>(args, first_bad, stream);
    case ScaleRule::kAmaxUp:
      return launch_quantize<rounding, ScaleRule::kAmaxUp>(args, first_bad, stream);
  }
}

template <typename Out>
void launch_dequantize(Out* out, const DequantizeArgs& args, cudaStream_t stream) {
  const int64_t count = args.N * args.K;
  if (count == 0) return;
  dequantize_nvfp4_kernel<<<grid_of(count * static_cast<int64_t>(sizeof(Out)) / 16), kThreads, 0, stream>>>(
      out, args.codes, args.scales, count, args.global_scale);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void quantize_nvfp4_cuda(const QuantizeArgs& args, uint64_t* first_bad, CudaStream stream) {
  if (args.N * args.K == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.rounding == Rounding::kStochastic) return launch_rule<Rounding::kStochastic>(args, first_bad, cuda_stream);
  launch_rule<Rounding::kNearestEven>(args, first_bad, cuda_stream);
}

void dequantize_nvfp4_cuda(const DequantizeArgs& args, CudaStream stream) {
  launch_dequantize(args.out, args, static_cast<cudaStream_t>(stream));
}

void dequantize_nvfp4_bf16_cuda(uint16_t* out, const DequantizeArgs& args_without_out, CudaStream stream) {
  launch_dequantize(out, args_without_out, static_cast<cudaStream_t>(stream));
}

}  // namespace qn
