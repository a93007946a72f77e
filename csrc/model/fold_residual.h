// One NVFP4 tensor for two: what a parameter with a residual becomes where only codes and scales fit.
#pragma once

#include "core/cpu.h"
#include "model/model.h"

namespace qn {

struct FoldedResidual {
  float global_scale;
  double relative_rms_error;  // √(Σ (folded − sum)² / Σ sum²), 0 for a tensor of zeros
};

// Quantises packed + residual, as view() shows them, to nearest: codes u8[rows, cols/2], scales e4m3[rows, cols/16]
// out. two_level: under the global scale of the sum's own largest magnitude; else under 1. The parameter stays as it
// is. Charges two chunks of rows in f32 to kScratch of the host. Deterministic for any number of threads.
FoldedResidual fold_residual(uint8_t* codes, uint8_t* scales, Model& model, const Parameter& parameter, bool two_level,
                             const Cpu& cpu);

}  // namespace qn
