// What a step of decoding begins with, in one launch on CUDA: the position advances, rope_table_cuda of the new one
// and embedding_cuda of one id, to the same bytes. The next kernel of the stream may be launched to overlap this one
// (programmatic dependent launch): it starts when the position is written, and the rest is there after its wait.
#pragma once

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

// All pointers on the device, 16-byte aligned (codes 8-byte).
struct DecodeBeginCuda {
  int32_t* position;  // in, out: += 1
  float* cosines;     // out f32[D/2]
  float* sines;       // out f32[D/2]
  int64_t D;
  double rope_base;
  uint16_t* x;         // out bf16[H], H = w.cols, a multiple of 8
  WeightView w;        // in [V, H]
  const int32_t* ids;  // in [1]
};
void decode_begin_cuda(const DecodeBeginCuda& args, CudaStream stream);

}  // namespace qn
