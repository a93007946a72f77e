#include "ops/linear.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/quantize.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

// Half of an H200's L2, so that cuBLASLt finds the decoded rows there beside its own operands. A guess until measured.
constexpr int64_t kSliceBytes = int64_t{24} << 20;
// Whole tiles of cuBLASLt, and starts of slices aligned for any algorithm.
constexpr int64_t kSliceRows = 128;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t whole_slice_rows(int64_t rows) { return (rows + kSliceRows - 1) / kSliceRows * kSliceRows; }

// Slices of equal size, a multiple of kSliceRows, of at most `bytes` decoded to bf16 (at least one multiple).
int64_t slice_rows(int64_t N, int64_t K, int64_t bytes) {
  const int64_t most = std::max(bytes / (2 * K) / kSliceRows * kSliceRows, kSliceRows);
  const int64_t slices = (N + most - 1) / most;
  return std::min(whole_slice_rows((N + slices - 1) / slices), N);
}

int64_t slice_bytes(const WeightView& w) {
  if (w.storage != Storage::kNvfp4 || w.rows * w.cols == 0) return 0;
  return align256(whole_slice_rows(slice_rows(w.rows, w.cols, kSliceBytes)) * w.cols * 2);
}

// computes   y = bf16(sum) or, with accumulate, bf16(y + sum)
// moves      read 4 B, write 2 B an element (accumulate: + 2 B read)      bound: memory
// launch     grid ceil(count/4 / 256), block 256, smem 0                  four elements a thread
// needs      count % 4 == 0, sum 16-byte and y 8-byte aligned
// numerics   f32, one rounding to nearest even
// measured   not yet
__global__ void round_sum_kernel(uint16_t* __restrict__ y, const float* __restrict__ sum, int64_t count,
                                 bool accumulate) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  if (at >= count) return;
  const float4 four = *reinterpret_cast<const float4*>(sum + at);
  const float values[4] = {four.x, four.y, four.z, four.w};
  union {
    uint16_t value[4];
    uint2 word;
  } result;
  if (accumulate) result.word = *reinterpret_cast<const uint2*>(y + at);
  for (int i = 0; i < 4; ++i) {
    result.value[i] = f32_to_bf16(accumulate ? bf16_to_f32(result.value[i]) + values[i] : values[i]);
  }
  *reinterpret_cast<uint2*>(y + at) = result.word;
}

// Scratch: the workspace of cuBLASLt, then `reserved` bytes, then as many decoded rows as fit.
struct Scratch {
  CublasWorkspace workspace;
  uint8_t* reserved;
  uint16_t* slice;
  int64_t slice_bytes;
};

Scratch divide(const LinearCuda& cuda, int64_t reserved, int64_t least_slice) {
  auto* base = static_cast<uint8_t*>(cuda.scratch);
  const int64_t before = kCublasWorkspaceBytes + align256(reserved);
  if (cuda.scratch_bytes < before + least_slice) {
    fail(Code::kInternal, "a matrix product got %lld bytes of scratch and needs %lld",
         static_cast<long long>(cuda.scratch_bytes), static_cast<long long>(before + least_slice));
  }
  return {{base, kCublasWorkspaceBytes},
          base + kCublasWorkspaceBytes,
          reinterpret_cast<uint16_t*>(base + before),
          cuda.scratch_bytes - before};
}

void require_bf16(const WeightView& w) {
  if (w.storage != Storage::kBF16) fail(Code::kUnsupported, "dense weights on CUDA are bf16");
}

void clear(void* out, CudaFloat type, int64_t count, bool accumulate, CudaStream stream) {
  if (accumulate || count == 0) return;
  const int64_t bytes = count * (type == CudaFloat::kF32 ? 4 : 2);
  QN_CUDA_CHECK(cudaMemsetAsync(out, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
}

// Calls product(rows, row_begin, row_count, global_scale) for every slice of an NVFP4 weight, packed part and residual;
// `rows` are decoded without their global scale.
template <typename Product>
void for_each_slice(const WeightView& w, const Scratch& scratch, CudaStream stream, const Product& product) {
  const int64_t N = w.rows, K = w.cols, rows = slice_rows(N, K, scratch.slice_bytes);
  for (const Nvfp4View* part : {&w.packed, &w.residual}) {
    if (!part->codes) continue;
    for (int64_t begin = 0; begin < N; begin += rows) {
      const int64_t count = std::min(rows, N - begin);
      dequantize_nvfp4_bf16_cuda(scratch.slice,
                                 {.out = nullptr,
                                  .codes = part->codes + begin * K / 2,
                                  .scales = part->scales + begin * K / kBlockSize,
                                  .N = count,
                                  .K = K,
                                  .global_scale = 1},
                                 stream);
      product(scratch.slice, begin, count, part->global_scale);
    }
  }
}

int64_t products_of(const WeightView& w, int64_t bytes) {
  if (w.storage != Storage::kNvfp4) return 1;
  const int64_t rows = slice_rows(w.rows, w.cols, bytes);
  return (w.rows + rows - 1) / rows * (w.has_residual() ? 2 : 1);
}

// Whether the products of dx are added in scratch. Decided by the default slices, so that more scratch, which makes
// them fewer, changes nothing here.
int64_t sum_bytes(const WeightView& w, int64_t T) {
  if (w.rows * w.cols == 0) return 0;
  return products_of(w, kSliceBytes) > 1 ? T * w.cols * 4 : 0;
}

GemmBf16 forward_product(void* y, CudaFloat y_type, const uint16_t* x, const uint16_t* rows, int64_t row_count,
                         const WeightView& w, int64_t T) {
  GemmBf16 gemm{};
  gemm.c = y;
  gemm.a = x;
  gemm.b = rows;
  gemm.M = T;
  gemm.N = row_count;
  gemm.K = w.cols;
  gemm.a_stride = w.cols;
  gemm.b_stride = w.cols;
  gemm.c_stride = w.rows;
  gemm.b_transposed = true;
  gemm.c_f32 = y_type == CudaFloat::kF32;
  gemm.alpha = 1;
  return gemm;
}

GemmBf16 input_product(void* dx, bool f32, const uint16_t* dy, const uint16_t* rows, int64_t row_count,
                       const WeightView& w, int64_t T) {
  GemmBf16 gemm{};
  gemm.c = dx;
  gemm.a = dy;
  gemm.b = rows;
  gemm.M = T;
  gemm.N = w.cols;
  gemm.K = row_count;
  gemm.a_stride = w.rows;
  gemm.b_stride = w.cols;
  gemm.c_stride = w.cols;
  gemm.c_f32 = f32;
  gemm.alpha = 1;
  return gemm;
}

// False when there are too many tokens, or columns, for it.
bool linear_gemv(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T, bool accumulate,
                 CudaStream stream) {
  if (w.storage != Storage::kNvfp4 || T > kGemvTokens || !gemv_nvfp4_fits_cuda(w.cols)) return false;
  GemvCudaArgs args{.y = y, .x = x, .w = w.packed, .T = T, .N = w.rows, .K = w.cols};
  args.y_type = y_type;
  args.accumulate = accumulate;
  gemv_nvfp4_cuda(args, stream);
  if (w.has_residual()) {
    args.w = w.residual;
    args.accumulate = true;
    gemv_nvfp4_cuda(args, stream);
  }
  return true;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t linear_cuda_scratch_bytes(const WeightView& w) { return kCublasWorkspaceBytes + slice_bytes(w); }

int64_t linear_backward_input_cuda_scratch_bytes(const WeightView& w, int64_t T) {
  return kCublasWorkspaceBytes + align256(sum_bytes(w, T)) + slice_bytes(w);
}

int64_t linear_backward_weight_cuda_scratch_bytes() { return kCublasWorkspaceBytes; }

void linear_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T, bool accumulate,
                 const LinearCuda& cuda) {
  if (T * w.rows == 0) return;
  if (w.cols == 0) return clear(y, y_type, T * w.rows, accumulate, cuda.stream);
  if (linear_gemv(y, y_type, x, w, T, accumulate, cuda.stream)) return;
  const Scratch scratch = divide(cuda, 0, slice_bytes(w));
  if (w.storage != Storage::kNvfp4) {
    require_bf16(w);
    GemmBf16 gemm = forward_product(y, y_type, x, static_cast<const uint16_t*>(w.dense), w.rows, w, T);
    gemm.add = accumulate;
    return cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
  }
  int64_t ends_at = 0;  // rows of y written so far: a row's second product, the residual's, adds
  for_each_slice(w, scratch, cuda.stream, [&](const uint16_t* rows, int64_t begin, int64_t count, float scale) {
    void* columns = static_cast<uint8_t*>(y) + begin * (y_type == CudaFloat::kF32 ? 4 : 2);
    GemmBf16 gemm = forward_product(columns, y_type, x, rows, count, w, T);
    gemm.alpha = scale;
    gemm.add = accumulate || begin < ends_at;
    ends_at = std::max(ends_at, begin + count);
    cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
  });
}

void linear_backward_input_cuda(uint16_t* dx, const uint16_t* dy, const WeightView& w, int64_t T, bool accumulate,
                                const LinearCuda& cuda) {
  const int64_t count = T * w.cols;
  if (count == 0) return;
  if (w.rows == 0) return clear(dx, CudaFloat::kBF16, count, accumulate, cuda.stream);
  const int64_t reserved = sum_bytes(w, T);
  const Scratch scratch = divide(cuda, reserved, slice_bytes(w));
  if (w.storage != Storage::kNvfp4) {
    require_bf16(w);
    GemmBf16 gemm = input_product(dx, false, dy, static_cast<const uint16_t*>(w.dense), w.rows, w, T);
    gemm.add = accumulate;
    return cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
  }
  const bool in_scratch = reserved > 0;
  bool add = !in_scratch && accumulate;
  for_each_slice(w, scratch, cuda.stream, [&](const uint16_t* rows, int64_t begin, int64_t row_count, float scale) {
    void* out = in_scratch ? static_cast<void*>(scratch.reserved) : dx;
    GemmBf16 gemm = input_product(out, in_scratch, dy + begin, rows, row_count, w, T);
    gemm.alpha = scale;
    gemm.add = add;
    add = true;
    cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
  });
  if (!in_scratch) return;
  const auto grid = static_cast<unsigned>((count / 4 + kThreads - 1) / kThreads);
  round_sum_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(cuda.stream)>>>(
      dx, reinterpret_cast<const float*>(scratch.reserved), count, accumulate);
  QN_CUDA_CHECK(cudaGetLastError());
}

void linear_backward_weight_cuda(const LinearWeightGradientCuda& args, const LinearCuda& cuda) {
  const int64_t count = args.row_count * args.K;
  if (count == 0) return;
  if (args.T == 0) return clear(args.dw, args.dw_type, count, args.accumulate, cuda.stream);
  GemmBf16 gemm{};
  gemm.c = args.dw;
  gemm.a = args.dy + args.row_begin;
  gemm.b = args.x;
  gemm.M = args.row_count;
  gemm.N = args.K;
  gemm.K = args.T;
  gemm.a_stride = args.N;
  gemm.b_stride = args.K;
  gemm.c_stride = args.K;
  gemm.a_transposed = true;
  gemm.c_f32 = args.dw_type == CudaFloat::kF32;
  gemm.alpha = 1;
  gemm.add = args.accumulate;
  cuda.blas.gemm_bf16(gemm, divide(cuda, 0, 0).workspace, cuda.stream);
}

}  // namespace qn
