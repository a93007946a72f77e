// Rotary position embedding, the half-split convention of Qwen and Llama checkpoints (Su et al. 2021):
//   angle[t, i] = position[t] · base^(−2i/D), in f32 as Hugging Face computes it (inverse frequency rounded to f32
//   first) (x[i], x[i + D/2]) → (x[i]·cos − x[i + D/2]·sin,  x[i + D/2]·cos + x[i]·sin)
//
//   cosines, sines  f32[T, D/2]      x  in/out f32[T, heads, D], rotated in place
// The inverse rotation (sines negated) is the backward pass. D is even.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"

namespace qn {

void rope_table_cpu(float* cosines, float* sines, const int32_t* positions, int64_t T, int64_t D, double base,
                    const Cpu& cpu);
void rope_cpu(float* x, const float* cosines, const float* sines, int64_t T, int64_t heads, int64_t D, bool inverse,
              const Cpu& cpu);

// On CUDA the tables are f32 as above and x is bf16[T, heads, D], rotated in f32 without contraction and rounded once:
// the bytes of rope_cpu rounded to bf16. All pointers on the device, x and the tables 16-byte aligned; D % 16 == 0.
// A table's power, cosine and sine are evaluated in double, as on the CPU, by CUDA's functions.
void rope_table_cuda(float* cosines, float* sines, const int32_t* positions, int64_t T, int64_t D, double base,
                     CudaStream stream);
void rope_cuda(uint16_t* x, const float* cosines, const float* sines, int64_t T, int64_t heads, int64_t D, bool inverse,
               CudaStream stream);

}  // namespace qn
