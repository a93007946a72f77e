// Matrix products with a weight w[N, K] in any storage. All activations are f32, row-major, contiguous.
//
//   linear                   y[T, N]  = x[T, K] · wᵀ
//   linear_backward_input    dx[T, K] = dy[T, N] · w
//   linear_backward_weight   dw[R, K] = dy[:, rows]ᵀ · x     (rows [row_begin, row_begin + R) of the weight)
//
// With accumulate, the product is added to what the output holds. Outputs never alias inputs.
// Accumulation in f32, in an order that depends on the shapes and the instruction set alone: two runs, and any number
// of threads, give equal bytes. An NVFP4 weight is decoded exactly (value = code · scale · global, rounded once), a
// bitsandbytes weight too (code · absmax, rounded once).
// Limits: T, N, K >= 0; NVFP4 needs K % 16 == 0, bitsandbytes K % 64 == 0. K = 0 or T = 0 writes zeros or nothing.
// Scratch: each worker's own.
#pragma once

#include "core/cpu.h"
#include "core/cublaslt.h"
#include "ops/gemv.h"
#include "ops/weight_view.h"

namespace qn {

void linear_cpu(float* y, const float* x, const WeightView& w, int64_t T, bool accumulate, const Cpu& cpu);
void linear_backward_input_cpu(float* dx, const float* dy, const WeightView& w, int64_t T, bool accumulate,
                               const Cpu& cpu);

struct LinearWeightGradient {
  float* dw;        // out f32[R, K]
  const float* dy;  // in f32[T, N]; N is the row stride, only columns [row_begin, row_begin + R) are read
  const float* x;   // in f32[T, K]
  int64_t T, N, K;
  int64_t row_begin, row_count;
  bool accumulate;
};
void linear_backward_weight_cpu(const LinearWeightGradient& args, const Cpu& cpu);

// Rows [row_begin, row_begin + R) of w decoded to f32[R, K].
void dequantize_rows_cpu(float* out, const WeightView& w, int64_t row_begin, int64_t row_count, const Cpu& cpu);

// Decoded rows or columns of a packed weight that exist at once on CUDA, unless the least slice is longer: a slice
// takes the largest projection of Qwen3-4B whole. Smaller ones stay in L2 but leave cuBLASLt fewer tiles than
// multiprocessors: on an H200, gate_proj and up_proj at 512 tokens take 107 µs so, 119 µs in slices of 24 MiB.
constexpr int64_t kLinearSliceBytes = int64_t{48} << 20;

#if defined(QN_WITH_CUDA)
// Up to three weights of one K, one below the other, whose product is one: q, k and v; gate and up. Refers to the
// views.
class WeightStack {
 public:
  WeightStack(const WeightView& only) : parts_(&only), count_(1) {}
  template <int count>
  explicit WeightStack(const WeightView (&parts)[count]) : WeightStack(parts, count) {}
  WeightStack(const WeightView* parts, int count) : parts_(parts), count_(count) {}
  const WeightView* begin() const { return parts_; }
  const WeightView* end() const { return parts_ + count_; }
  int count() const { return count_; }
  int64_t cols() const { return parts_->cols; }
  int64_t rows() const {
    int64_t sum = 0;
    for (const WeightView& part : *this) sum += part.rows;
    return sum;
  }

 private:
  const WeightView* parts_;
  int count_;
};

// On CUDA activations and gradients of activations are bf16, sums f32; y and dw are bf16, rounded once, or f32.
// Weights: NVFP4, whose code · scale is exact in bf16 and whose global scale multiplies the sum, or bf16. NVFP4 weights
// of a stack are one product when their global scales are equal or powers of two, else one each. With a residual the
// product is two products, so a bf16 y is rounded twice. Bitsandbytes weights are one product each; up to kGemvTokens
// tokens of y read their codes as they are (ops/gemv_bnb4.h), other products round code · absmax to bf16 first. But up
// to gemv_tokens tokens of y read packed weights directly, kGemvTokens at a time, with one sum and one rounding
// (ops/gemv.h), as up to kGemvInputTokens of dx do (ops/gemv_backward_input.h); other products decode slices to
// scratch, of rows for y and of columns for dx, and call cuBLASLt. Pointers on the device, activations 16-byte aligned,
// scratch 256-byte aligned. Nothing is allocated, nothing waits; two runs with equally much scratch give equal bytes.
struct LinearCuda {
  CublasLt& blas;
  void* scratch;          // one product at a time
  int64_t scratch_bytes;  // what the functions below say, or more or less: all of it is used, in larger slices
  CudaStream stream;
  int64_t gemv_tokens = 0;  // 0: by the shape of the weight
};

// With slices of up to slice_bytes.
int64_t linear_cuda_scratch_bytes(const WeightStack& w, int64_t slice_bytes = kLinearSliceBytes);
// y[T, N] over all N rows of the stack.
void linear_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightStack& w, int64_t T, bool accumulate,
                 const LinearCuda& cuda);

// When dx needs more than one product, they are added in f32 in scratch and dx rounds once.
int64_t linear_backward_input_cuda_scratch_bytes(const WeightStack& w, int64_t T,
                                                 int64_t slice_bytes = kLinearSliceBytes);
// dx[T, K] = dy[T, N] · w over all N rows of the stack.
void linear_backward_input_cuda(uint16_t* dx, const uint16_t* dy, const WeightStack& w, int64_t T, bool accumulate,
                                const LinearCuda& cuda);

struct LinearWeightGradientCuda {
  void* dw;            // out bf16[R, K] or f32[R, K]
  const uint16_t* dy;  // in bf16[T, N]
  const uint16_t* x;   // in bf16[T, K]
  int64_t T, N, K;
  int64_t row_begin, row_count;
  CudaFloat dw_type;
  bool accumulate;
};
int64_t linear_backward_weight_cuda_scratch_bytes();
void linear_backward_weight_cuda(const LinearWeightGradientCuda& args, const LinearCuda& cuda);
#endif

// The truth: double accumulators, plain loops, decoded element by element. Used by tests and by compareForwardPaths.
void linear_reference_cpu(float* y, const float* x, const WeightView& w, int64_t T, const Cpu& cpu);
#if defined(QN_WITH_CUDA)
// The same on the device, for weights in any storage; x bf16. T <= 65535.
void linear_reference_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T,
                           bool accumulate, CudaStream stream);
#endif

}  // namespace qn
