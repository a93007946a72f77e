#include "ops/gemv.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/async_cuda.h"
#include "ops/gemv_kernel_cuda.h"
#include "ops/gemv_plan.h"
#include "ops/gemv_weights_cuda.h"
#include "ops/gemv_x_cuda.h"
#include "ops/swiglu_cuda.h"

namespace qn {

namespace {

using namespace gemv;

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
// measured   H200 T=1 K=2560: norm + N=151936 4006 GB/s, 94 % of copy (4247), 1.05 times a plain read; norm + gate, up
//            F=9728 + SwiGLU 2519 GB/s, 1.43 times; norm + q, k, v N=6144 1494 GB/s, 1.72 times; N=2560, added: K=4096
//            1111 GB/s, 1.83 times, K=9728 1677 GB/s, 1.77 times; 2026-11-21
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
  uint8_t* const zeros = staged + T * p.units * kUnitXBytes;
  auto* const sums = reinterpret_cast<float*>(zeros + (kOneToken ? kZeroBytes : 0));

  const Part part(p);
  const int units = (part.rows + Unit::kRows - 1) / Unit::kRows * p.tile_units;
  Ring<Layout> ring(p, part, shared, warp, lane);
  const int first_k = ring.k;
  Eight norm_ahead{};
  if (kOneToken && p.norm && thread < p.K / 8) norm_ahead = load8(p.norm + thread * 8);
  wait_for_previous_kernel();
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
  // After x, which else would wait behind them; and not before the previous kernel has ended, though weights depend on
  // none: that would take memory bandwidth from it, and was slower.
  if (warp < units) {
#pragma unroll 1
    for (int i = 0; i < Layout::kStages; ++i) ring.copy_next(p, part, i * Unit::kBytes, lane);
  }

  if constexpr (kOneToken) {
    for (int i = thread; i < kZeroBytes / 16; i += Layout::kThreads) reinterpret_cast<uint4*>(zeros)[i] = {0, 0, 0, 0};
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
  let_next_kernel_start();

  // One token: the lanes 4g + q of columns g of b that belong to other lanes than q read zeros, of other banks than
  // those that do not. Several: lanes past the last token repeat it; their sums are not kept.
  const bool reads_x = !kOneToken || g / 2 == q;
  const uint8_t* const x = !kOneToken ? staged + (min(g, T - 1) * 4 + q) * 16
                           : reads_x  ? staged + q * 32 + g % 2 * 16
                                      : zeros + (g / 2 + 2) % 4 * 32;
  const int x_unit_bytes = reads_x ? T * kUnitXBytes : 0;
  int slot = 0, k = first_k;
#pragma unroll 1
  for (int i = warp; i < units; i += Layout::kWarps) {
    wait_copies<Layout::kStages - 1>();
    __syncwarp();
    const uint32_t unit = ring.slots + slot;
    const uint8_t* const x_unit = x + (Layout::kResidual && k >= p.units ? k - p.units : k) * x_unit_bytes;
    float* const to = sums + i * (T * Unit::kRows) + g;
    if constexpr (kOneToken) {
      uint4 codes[kLanePieces];
      uint32_t scales[kLanePieces / 2];
#pragma unroll
      for (int j = 0; j < kLanePieces; ++j)
        codes[j] = load_shared16((unit + Unit::piece_at(g, q * kLanePieces)) ^ (j * 16));
#pragma unroll
      for (int j = 0; j < kLanePieces / 2; ++j)
        scales[j] = load_shared4(unit + Unit::kScalesAt + lane * 2 * kLanePieces + j * 4);
      __syncwarp();
      ring.copy_next(p, part, slot, lane);
      const float sum = multiply_token(codes, scales, x_unit);
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

Device current_device() {
  int device = 0, multiprocessors = 0, shared_bytes = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return {multiprocessors, shared_bytes - kGemvTokens * kNormWarps * int64_t{sizeof(float)}};
}

template <typename Layout>
void launch_layout(const Kernel& p, const Plan& plan, bool overlaps, cudaStream_t stream) {
  const auto kernel = gemv_nvfp4_kernel<Layout>;
  QN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks_end[kGemvMatrices - 1]));
  config.blockDim = dim3(Layout::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

template <bool kOne, int kStages, bool kWhole>
void launch_stages(const Kernel& p, const Plan& plan, const Shape& shape, cudaStream_t stream) {
  shape.residual ? launch_layout<LayoutOf<kOne, kStages, true, kWhole>>(p, plan, shape.overlaps, stream)
                 : launch_layout<LayoutOf<kOne, kStages, false, kWhole>>(p, plan, shape.overlaps, stream);
}

void launch(const Kernel& p, const Plan& plan, const Shape& shape, cudaStream_t stream) {
  const bool one = plan.tokens == 1;
  if (!plan.whole)
    return one ? launch_stages<true, 1, false>(p, plan, shape, stream)
               : launch_stages<false, 1, false>(p, plan, shape, stream);
  if (plan.stages == 1)
    return one ? launch_stages<true, 1, true>(p, plan, shape, stream)
               : launch_stages<false, 1, true>(p, plan, shape, stream);
  if (plan.stages == 2)
    return one ? launch_stages<true, 2, true>(p, plan, shape, stream)
               : launch_stages<false, 2, true>(p, plan, shape, stream);
  launch_stages<true, 4, true>(p, plan, shape, stream);  // of one token alone
}

// The part of the arguments for plan.tokens tokens from `token` on.
Kernel parameters(const GemvCudaArgs& args, const Plan& plan, const Shape& shape, int64_t token) {
  Kernel p{};
  p.x = args.x + token * args.K;
  p.norm = args.norm;
  p.norm_eps = args.norm_eps;
  p.norm_lanes = args.K <= 1024 ? 32 : args.K <= 4096 ? 128 : 512;
  p.T = plan.tokens;
  p.K = static_cast<int>(args.K);
  p.units = plan.units;
  p.tile_units = p.units * (shape.residual ? 2 : 1);
  p.step_tiles = plan.warps() / p.tile_units;
  p.step_units = plan.warps() % p.tile_units;
  p.y_f32 = args.y_type == CudaFloat::kF32;
  p.accumulate = args.accumulate;
  p.swiglu = args.swiglu;
  const float sum_scale = plan.tokens == 1 ? kTokenSumScale : kTokensSumScale;
  for (int i = 0; i < kGemvMatrices; ++i) {
    const GemvMatrix& from = args.matrices[i];
    const int blocks = plan.blocks_end[i] - (i > 0 ? plan.blocks_end[i - 1] : 0);
    Matrix& to = p.matrices[i];
    to.planes[0] = {from.w.codes, from.w.scales, from.w.global_scale * sum_scale};
    to.planes[1] = to.planes[0];
    to.planes[1].scale = 0;
    if (from.residual.codes)
      to.planes[1] = {from.residual.codes, from.residual.scales, from.residual.global_scale * sum_scale};
    to.y_stride = from.y_stride ? from.y_stride : from.N;
    to.y = static_cast<uint8_t*>(from.y) + token * to.y_stride * (p.y_f32 ? 4 : 2);
    to.blocks_end = plan.blocks_end[i];
    to.outputs_per_block = blocks > 0 ? static_cast<int>(shape.outputs[i] / blocks) : 0;
    to.longer = blocks > 0 ? static_cast<int>(shape.outputs[i] % blocks) : 0;
  }
  return p;
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

bool gemv_nvfp4_fits_cuda(int64_t K) { return fits(K, current_device()); }

void gemv_nvfp4_cuda(const GemvCudaArgs& args, CudaStream stream) {
  check(args);
  Shape shape{};
  for (int i = 0; i < args.matrix_count; ++i) {
    shape.outputs[i] = args.swiglu && i > 0 ? 0 : args.matrices[i].N;
    shape.residual = shape.residual || args.matrices[i].residual.codes;
  }
  if (args.T == 0 || shape.outputs[0] + shape.outputs[1] + shape.outputs[2] == 0) return;
  shape.K = args.K;
  shape.swiglu = args.swiglu;
  shape.overlaps = args.overlap_previous;
  const Device device = current_device();
  for (int64_t t = 0; t < args.T;) {
    shape.T = args.T - t;
    const Plan layout = plan(shape, device);
    if (layout.tokens == 0) {
      fail(Code::kUnsupported, "a GEMV over %lld columns does not fit the shared memory of this device",
           static_cast<long long>(args.K));
    }
    launch(parameters(args, layout, shape, t), layout, shape, static_cast<cudaStream_t>(stream));
    t += layout.tokens;
  }
}

}  // namespace qn
