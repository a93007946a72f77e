// Rotary position embedding, the half-split convention of Qwen and Llama checkpoints (Su et al. 2021):
//   angle[t, i] = position[t] · base^(−2i/D), in f32 as Hugging Face computes it (inverse frequency rounded to f32
//   first) (x[i], x[i + D/2]) → (x[i]·cos − x[i + D/2]·sin,  x[i + D/2]·cos + x[i]·sin)
//
//   cosines, sines  f32[T, D/2]      x  in/out f32[T, heads, D], rotated in place
// The inverse rotation (sines negated) is the backward pass. D is even.
#pragma once

#include "core/cpu.h"

namespace qn {

void rope_table_cpu(float* cosines, float* sines, const int32_t* positions, int64_t T, int64_t D, double base,
                    const Cpu& cpu);
void rope_cpu(float* x, const float* cosines, const float* sines, int64_t T, int64_t heads, int64_t D, bool inverse,
              const Cpu& cpu);

}  // namespace qn
