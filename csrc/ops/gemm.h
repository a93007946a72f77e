// The one blocked f32 matrix product behind linear.h:  c[rows, cols] (+)= a · b over `depth`.
//
// Operands are packed into panels [depth][tile] in a worker's own scratch and decoded while they are packed, so no
// dense copy of a weight ever exists. Work is shared out by tiles of c alone and every element adds its blocks of
// kGemmDepth products in order, so how c is cut, and by how many threads, changes no bit.
#pragma once

#include "core/cpu.h"
#include "ops/linear_kernels.h"
#include "ops/weight_view.h"

namespace qn {

constexpr int64_t kGemmDepth = 256;  // a panel of b (kGemmDepth x 32 f32 = 32 KiB) stays in L1; % 16 for NVFP4 blocks

// A matrix, one of whose axes is the depth of the product; the other one's indices are called lanes.
struct GemmOperand {
  WeightView matrix;
  int64_t stride;         // elements from one row to the next, when dense
  bool depth_is_columns;  // true: a lane is a row. false: a lane is a column.
};

struct GemmArgs {
  float* c;  // out f32[rows, cols], rows `c_stride` apart
  int64_t c_stride;
  GemmOperand a;  // lanes: rows of c; dense f32
  GemmOperand b;  // lanes: columns of c
  int64_t rows, cols, depth;
  bool accumulate;
};

void gemm_cpu(const GemmArgs& args, const Cpu& cpu);

// The table for cpu.isa.
const LinearKernels& linear_kernels(Isa isa);

// out[0, count) = w[row, column ...], decoded. Packed: column and count % 16 == 0.
void decode_row(float* out, const WeightView& w, int64_t stride, int64_t row, int64_t column, int64_t count,
                const LinearKernels& kernels);

}  // namespace qn
