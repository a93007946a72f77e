// The row functions of ops/adamw.h as each instruction set compiles them from ops/adamw_rows.h.
#pragma once

#include "core/philox.h"
#include "ops/adamw.h"

namespace qn {

struct AdamwKernels {
  // scratch f32[2 · (K rounded up to 16)], read for plain moments
  void (*update)(const AdamwArgs& args, int64_t row, float* scratch, AdamwRow* result);
  void (*store)(const StoreRowsArgs& args, int64_t row, const float* x);
  void (*load)(const StoreRowsArgs& args, int64_t row, float* x);
  double (*squares)(const float* x, int64_t count);
};

// Error(kInvalidArgument) for a number of columns that adamw does not take.
void check_adamw_columns(MomentFormat format, bool packed_weight, int64_t K);

// adamw_cuda() of bf16 and f32 moments.
void adamw_plain_cuda(AdamwRow* rows, const AdamwArgs& args, CudaStream stream);

extern const AdamwKernels kAdamwPortable;
extern const AdamwKernels kAdamwAvx2;
extern const AdamwKernels kAdamwAvx512;

}  // namespace qn
