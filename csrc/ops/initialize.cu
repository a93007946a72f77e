#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/initialize.h"
#include "ops/normal.h"

namespace qn {

namespace {

constexpr int kThreads = 128;

// computes   codes, scale = quantize_nvfp4_block(16 draws)
// moves      write N·K/2 + N·K/16 B                                    bound: double precision, about 100 operations
//                                                                      a draw, as a warp takes the tails too
// launch     grid ceil(count/16 / 128), block 128, smem 0              one block of 16 a thread, one 8-B store
// needs      count % 16 == 0, codes 8-byte aligned
// numerics   IEEE doubles, nothing contracted: the bytes of the CPU
// measured   not yet
__global__ void __launch_bounds__(kThreads)
    initialize_nvfp4_kernel(uint8_t* __restrict__ codes, uint8_t* __restrict__ scales, int64_t blocks,
                            float global_scale, uint64_t seed, uint32_t parameter, double stddev) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (block >= blocks) return;
  float values[kBlockSize];
  // Unrolled, the sixteen draws would not fit the instruction cache.
#pragma unroll 1
  for (int quad = 0; quad < kBlockSize / 4; ++quad) {
    draw_normal_quad(values + 4 * quad, seed, parameter, stddev, block * (kBlockSize / 4) + quad);
  }
  union {
    uint8_t byte[kBlockSize / 2];
    uint2 word;
  } packed;
  quantize_nvfp4_block(packed.byte, scales + block, values, global_scale, Rounding::kNearestEven, ScaleRule::kAmax,
                       RandomKey{}, block * kBlockSize);
  reinterpret_cast<uint2*>(codes)[block] = packed.word;
}

// computes   out = draws, rounded to the element type
// moves      write count elements                                      bound: double precision
// launch     grid ceil(count/4 / 128), block 128, smem 0               four draws of one Philox call a thread
// needs      nothing
// numerics   IEEE doubles, nothing contracted: the bytes of the CPU
// measured   not yet
template <Storage storage>
__global__ void __launch_bounds__(kThreads)
    initialize_dense_kernel(void* __restrict__ out, int64_t count, uint64_t seed, uint32_t parameter, double stddev) {
  const int64_t quad = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (4 * quad >= count) return;
  float values[4];
  draw_normal_quad(values, seed, parameter, stddev, quad);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t at = 4 * quad + i;
    if (at >= count) return;
    if constexpr (storage == Storage::kF32) static_cast<float*>(out)[at] = values[i];
    if constexpr (storage == Storage::kF16) static_cast<uint16_t*>(out)[at] = f32_to_f16(values[i]);
    if constexpr (storage == Storage::kBF16) static_cast<uint16_t*>(out)[at] = f32_to_bf16(values[i]);
  }
}

unsigned grid_of(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

template <Storage storage>
void launch_dense(const InitializeArgs& args, cudaStream_t stream) {
  initialize_dense_kernel<storage><<<grid_of((args.count + 3) / 4), kThreads, 0, stream>>>(
      args.dense, args.count, args.seed, args.parameter, args.stddev);
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void initialize_normal_cuda(const InitializeArgs& args, CudaStream stream) {
  if (args.count == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.storage) {
    case Storage::kNvfp4: {
      const int64_t blocks = args.count / kBlockSize;
      initialize_nvfp4_kernel<<<grid_of(blocks), kThreads, 0, cuda_stream>>>(
          args.codes, args.scales, blocks, args.global_scale, args.seed, args.parameter, args.stddev);
      break;
    }
    case Storage::kBnb4:
      fail(Code::kInternal, "random weights are NVFP4 or dense");
    case Storage::kF32:
      launch_dense<Storage::kF32>(args, cuda_stream);
      break;
    case Storage::kF16:
      launch_dense<Storage::kF16>(args, cuda_stream);
      break;
    case Storage::kBF16:
      launch_dense<Storage::kBF16>(args, cuda_stream);
      break;
  }
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
