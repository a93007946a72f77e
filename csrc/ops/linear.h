// Matrix products with a weight w[N, K] in any storage. All activations are f32, row-major, contiguous.
//
//   linear                   y[T, N]  = x[T, K] · wᵀ
//   linear_backward_input    dx[T, K] = dy[T, N] · w
//   linear_backward_weight   dw[R, K] = dy[:, rows]ᵀ · x     (rows [row_begin, row_begin + R) of the weight)
//
// With accumulate, the product is added to what the output holds. Outputs never alias inputs.
// Accumulation in f32, in an order that depends on the shapes and the instruction set alone: two runs, and any number
// of threads, give equal bytes. An NVFP4 weight is decoded exactly (value = code · scale · global, rounded once).
// Limits: T, N, K >= 0; NVFP4 needs K % 16 == 0. K = 0 or T = 0 writes zeros or nothing. Scratch: each worker's own.
#pragma once

#include "core/cpu.h"
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

// The truth: double accumulators, plain loops, decoded element by element. Used by tests and by compareForwardPaths.
void linear_reference_cpu(float* y, const float* x, const WeightView& w, int64_t T, const Cpu& cpu);

}  // namespace qn
