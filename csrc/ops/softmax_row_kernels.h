// Instruction-set variants of ops/softmax_row.h.
#pragma once

#include <cstdint>

namespace qn {

float softmax_row_max_avx2(const float* x, int64_t count);
double softmax_row_exp_sum_avx2(const float* x, int64_t count, float shift);
void softmax_row_scale_avx2(float* x, int64_t count, float lse, float weight);

float softmax_row_max_avx512(const float* x, int64_t count);
double softmax_row_exp_sum_avx512(const float* x, int64_t count, float shift);
void softmax_row_scale_avx512(float* x, int64_t count, float lse, float weight);

float softmax_row_max_neon(const float* x, int64_t count);
double softmax_row_exp_sum_neon(const float* x, int64_t count, float shift);
void softmax_row_scale_neon(float* x, int64_t count, float lse, float weight);

}  // namespace qn
