// What loading does to a piece of a tensor once its bytes are in memory: checks, and conversions to and from f32.
#pragma once

#include <cstdint>
#include <string>

#include "core/cpu.h"
#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/linear_kernels.h"
#include "ops/weight_view.h"

namespace qn {

// A piece of a tensor for error messages: where it begins, and how wide the rows are. `width` counts blocks for scales.
struct PieceName {
  const std::string& parameter;
  int64_t begin, width;
};

// count values of kF32, kF16 or kBF16. Error(kNonFiniteWeight) names the first NaN or infinity.
void check_finite(const void* values, DType dtype, int64_t count, const PieceName& name);
// E4M3 scales: Error(kNonFiniteWeight) names the first that is NaN or has its sign bit set.
void check_scales(const uint8_t* scales, int64_t count, const PieceName& name);

// f32 absmax of bitsandbytes, of which the first is number `begin`: the same for NaN and infinity.
void check_absmax(const float* absmax, int64_t count, const std::string& parameter, int64_t begin);

// kF32, kF16 or kBF16 to f32, exact. in and out may be the same memory only for kF32.
void widen(float* out, const void* in, DType dtype, int64_t count, const LinearKernels& kernels);
// Finite f32 to f32, f16 or bf16, to nearest even. Error(kNonFiniteWeight) where a finite value overflows f16.
void narrow(void* out, const float* in, Storage form, int64_t count, const PieceName& name,
            const LinearKernels& kernels);
// Finite f32 to blocks of Q8_0. Error(kNonFiniteWeight) where a block needs a scale that f16 has not.
void narrow_q8(uint8_t* blocks, const float* in, int64_t count, const PieceName& name);
// kF16 or kF32 scales to the E4M3 bytes of the same values. Error(kInvalidArgument) names the first value that E4M3 has
// not, Error(kNonFiniteWeight) the first NaN or negative one.
void encode_scales(uint8_t* out, const void* in, DType dtype, int64_t count, const PieceName& name);

// Codes and scales of count values, whole blocks, all finite, rounded to nearest even.
void quantize_piece(uint8_t* codes, uint8_t* scales, const float* x, int64_t count, float global_scale, ScaleRule rule,
                    Isa isa);

// max |x| of kF32, kF16 or kBF16; the values are finite.
float largest_magnitude(const void* values, DType dtype, int64_t count);

}  // namespace qn
