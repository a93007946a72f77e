// What gemv.cu's kernel is given, what of it is compiled apart and what a block has to do. For .cu files alone.
#pragma once

#include <cstdint>

#include "ops/gemv_plan.h"
#include "ops/gemv_unit_cuda.h"

namespace qn::gemv {

struct Plane {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  float scale = 0;  // of a sum
};

// Its outputs are dealt to blocks: the first `longer` blocks have outputs_per_block + 1.
struct Matrix {
  Plane planes[2];  // packed; residual, or with scale 0 the packed part again
  uint8_t* y = nullptr;
  int64_t y_stride = 0;
  int blocks_end = 0;  // blocks of this matrix and those before
  int outputs_per_block = 0, longer = 0;
};

// Outputs are rows of one y: a block has neighbouring ones of one matrix, or with swiglu of gate and up: then row 2i of
// its tiles is row i of gate and 2i + 1 row i of up.
struct Kernel {
  Matrix matrices[kGemvMatrices];
  const uint16_t* x;
  const float* norm;
  float norm_eps;
  int norm_lanes;  // 32, 128 or 512: the group of rms_norm_cuda for such a row
  int T, K;
  int units;                   // of a row in one plane
  int tile_units;              // of a row in all planes
  int step_tiles, step_units;  // kWarps units further
  bool y_f32, accumulate, swiglu;
};

// What is compiled apart. One token takes eight rows at a time; several take sixteen, which the tensor cores multiply
// by up to eight tokens at no further cost.
template <bool kOne, int kStageCount, bool kWithResidual, bool kWholeUnits>
struct LayoutOf {
  static constexpr bool kOneToken = kOne;
  static constexpr int kWarps = warps_of(kOne), kThreads = 32 * kWarps;
  static constexpr int kStages = kStageCount;       // units in flight a warp
  static constexpr bool kResidual = kWithResidual;  // whether there are two planes
  static constexpr bool kWhole = kWholeUnits;       // whether rows end with a unit
  using Unit = UnitOf<rows_of(kOne)>;
};

// The block's part of the outputs.
struct Part {
  int matrix;
  int first, outputs;  // rows of y
  int rows;            // of weights

  __device__ explicit Part(const Kernel& p) {
    int block = static_cast<int>(blockIdx.x);
    matrix = (block >= p.matrices[0].blocks_end ? 1 : 0) + (block >= p.matrices[1].blocks_end ? 1 : 0);
    if (matrix > 0) block -= p.matrices[matrix - 1].blocks_end;
    const Matrix& m = p.matrices[matrix];
    first = block * m.outputs_per_block + min(block, m.longer);
    outputs = m.outputs_per_block + (block < m.longer ? 1 : 0);
    rows = p.swiglu ? 2 * outputs : outputs;
  }
};

}  // namespace qn::gemv
