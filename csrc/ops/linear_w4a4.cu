#include "ops/linear_w4a4.h"

#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "format/nvfp4.h"
#include "ops/quantize.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

// computes   what follows from amax and the global scales of the weight
// moves      32 B                                                      bound: latency
// launch     grid 1, block 1
// needs      nothing
// numerics   exact when the global scales of the weight are powers of two, else alpha rounds once
// measured   not yet
__global__ void w4a4_scalars_kernel(W4a4Scalars* scalars, float weight_scale, float residual_scale) {
  const float amax = scalars->amax;
  const bool finite = isfinite(amax);
  const float global = finite ? finite_two_level_global_scale(amax) : 1.0f;
  scalars->global_scale = global;
  scalars->alpha[0] = finite ? global * weight_scale : NAN;
  scalars->alpha[1] = finite ? global * residual_scale : NAN;
  scalars->beta[0] = 0.0f;
  scalars->beta[1] = 1.0f;
}

// computes   four neighbouring scales of a row into their word of a 128x4 tile
// moves      read rows·cols B, write the same padded to 128 and 4      bound: memory
// launch     grid ceil(words / 256), block 256, smem 0                 one word a thread, in the order they are written
// needs      blocked 4-byte aligned
// numerics   exact
// measured   not yet
__global__ void __launch_bounds__(kThreads)
    swizzle_scales_kernel(uint32_t* __restrict__ blocked, const uint8_t* __restrict__ scales, int64_t rows,
                          int64_t cols, int64_t tiles_across, int64_t words) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= words) return;
  // A tile is 128 words: 32 times a row of each of its four groups of 32 rows.
  const int64_t tile = at / 128, inner = at % 128 / 4, group = at % 4;
  const int64_t row = tile / tiles_across * 128 + group * 32 + inner, col = tile % tiles_across * 4;
  uint32_t word = 0;
  for (int i = 0; i < 4 && row < rows && col + i < cols; ++i) {
    word |= static_cast<uint32_t>(scales[row * cols + col + i]) << (8 * i);
  }
  blocked[at] = word;
}

// Pieces of the caller's scratch, 256-byte aligned.
class Pieces {
 public:
  explicit Pieces(const LinearCuda& cuda) : next_(static_cast<uint8_t*>(cuda.scratch)) {}
  uint8_t* take(int64_t bytes) {
    uint8_t* piece = next_;
    next_ += (bytes + 255) / 256 * 256;
    return piece;
  }

 private:
  uint8_t* next_;
};

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void swizzle_scales_cuda(uint8_t* blocked, const uint8_t* scales, int64_t rows, int64_t cols, CudaStream stream) {
  const int64_t words = blocked_scales_bytes(rows, cols) / 4;
  if (words == 0) return;
  swizzle_scales_kernel<<<static_cast<unsigned>((words + kThreads - 1) / kThreads), kThreads, 0,
                          static_cast<cudaStream_t>(stream)>>>(reinterpret_cast<uint32_t*>(blocked), scales, rows, cols,
                                                               (cols + 3) / 4, words);
  QN_CUDA_CHECK(cudaGetLastError());
}

void quantize_w4a4_cuda(const W4a4Input& out, const uint16_t* x, const WeightView& w, int64_t T, CudaStream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  W4a4Scalars* scalars = out.scalars;
  QN_CUDA_CHECK(cudaMemsetAsync(scalars, 0, sizeof(W4a4Scalars), cuda_stream));
  amax_bf16_cuda(&scalars->amax, &scalars->first_bad, x, T * w.cols, stream);
  w4a4_scalars_kernel<<<1, 1, 0, cuda_stream>>>(scalars, w.packed.global_scale, w.residual.global_scale);
  QN_CUDA_CHECK(cudaGetLastError());
  quantize_nvfp4_bf16_cuda(out.codes, out.row_scales, x, T, w.cols, &scalars->global_scale, &scalars->first_bad,
                           stream);
  swizzle_scales_cuda(out.scales, out.row_scales, T, w.cols / kBlockSize, stream);
}

void linear_w4a4_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T, bool accumulate,
                      const LinearCuda& cuda) {
  const int64_t N = w.rows, K = w.cols, row_scales = K / kBlockSize;
  if (w.storage != Storage::kNvfp4) fail(Code::kUnsupported, "compute 'w4a4' needs NVFP4 weights");
  require_w4a4_shape("a weight", N, K);
  if (const int64_t needed = linear_w4a4_scratch_bytes(N, K, T); cuda.scratch_bytes < needed) {
    fail(Code::kInternal, "an NVFP4 product got %lld bytes of scratch and needs %lld",
         static_cast<long long>(cuda.scratch_bytes), static_cast<long long>(needed));
  }
  if (T * N == 0) return;
  // The order of linear_w4a4_scratch_bytes().
  Pieces pieces(cuda);
  const CublasWorkspace workspace{pieces.take(kCublasWorkspaceBytes), kCublasWorkspaceBytes};
  auto* scalars = reinterpret_cast<W4a4Scalars*>(pieces.take(sizeof(W4a4Scalars)));
  const W4a4Input input{scalars, pieces.take(T * K / 2), pieces.take(T * row_scales),
                        pieces.take(blocked_scales_bytes(T, row_scales))};
  uint8_t* weight_scales = pieces.take(blocked_scales_bytes(N, row_scales));
  quantize_w4a4_cuda(input, x, w, T, cuda.stream);

  MatmulNvfp4 product{};
  product.c = y;
  product.c_f32 = y_type == CudaFloat::kF32;
  product.a_codes = input.codes;
  product.a_scales = input.scales;
  product.b_scales = weight_scales;
  product.M = T;
  product.N = N;
  product.K = K;
  product.alpha = &scalars->alpha[0];
  product.beta = &scalars->beta[accumulate ? 1 : 0];
  for (const Nvfp4View* packed : {&w.packed, &w.residual}) {
    if (!packed->codes) continue;
    swizzle_scales_cuda(weight_scales, packed->scales, N, row_scales, cuda.stream);
    product.b_codes = packed->codes;
    cuda.blas.matmul_nvfp4(product, workspace, cuda.stream);
    product.alpha = &scalars->alpha[1];
    product.beta = &scalars->beta[1];
  }
}

}  // namespace qn
