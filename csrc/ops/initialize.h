// A matrix of random weights, addressed by seed, parameter and element alone:
//
//   x[i] = f32(stddev · Φ⁻¹((word_i + ½) / 2³²)),  word_i the Philox word of element i (ops/normal.h)
//   dense      out = x, rounded to nearest even
//   NVFP4      codes, scales = quantize(x) to nearest, the scale by the largest magnitude of a block (format/nvfp4.h)
//
// The same bytes on every machine, for any number of threads, and on CUDA. No scratch.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

struct InitializeArgs {
  Storage storage;
  void* dense;     // out f32, f16 or bf16 [count]; not of kNvfp4
  uint8_t* codes;  // out u8[count/2], e4m3[count/16]; of kNvfp4, whose count % 16 == 0
  uint8_t* scales;
  float global_scale;  // of kNvfp4
  int64_t count;
  uint64_t seed;
  uint32_t parameter;
  double stddev;
};

void initialize_normal_cpu(const InitializeArgs& args, const Cpu& cpu);

#if defined(QN_WITH_CUDA)
// Pointers on the device, dense and codes 8-byte aligned. Nothing is allocated and nothing waits.
void initialize_normal_cuda(const InitializeArgs& args, CudaStream stream);
#endif

}  // namespace qn
