// Attention tiles in vectors of 4 floats.
#include <arm_neon.h>

#include "ops/attention_tiles.h"

namespace qn {

namespace {

using Vec = float32x4_t;
// 20 sums, four vectors of b and five factors, or 16 sums, four keys and a query: within 32 registers.
constexpr int kWidth = 4, kBlockRows = 5, kBlockVecs = 4, kDotRows = 4;

Vec load(const float* p) { return vld1q_f32(p); }
void store(float* p, Vec x) { vst1q_f32(p, x); }
Vec broadcast(float x) { return vdupq_n_f32(x); }
Vec zero() { return vdupq_n_f32(0.0f); }
Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
// The second operand when one is NaN, as x86's max has it and exp_of() counts on.
Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
Vec round(Vec x) { return vrndnq_f32(x); }
Vec less(Vec a, Vec b) { return vreinterpretq_f32_u32(vcltq_f32(a, b)); }
Vec clear(Vec mask, Vec x) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(mask)));
}
Vec scale_by_power(Vec x, Vec n) {
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
  return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
float highest(Vec x) { return vmaxvq_f32(x); }
float total(Vec x) { return vaddvq_f32(x); }
Vec unpack_low(Vec a, Vec b) { return vzip1q_f32(a, b); }
Vec unpack_high(Vec a, Vec b) { return vzip2q_f32(a, b); }
Vec unpack_low_pairs(Vec a, Vec b) {
  return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
Vec unpack_high_pairs(Vec a, Vec b) {
  return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
Vec load_lanes(const float* p, int64_t) { return vld1q_f32(p); }
void store_lane_sums(float* p, Vec x) { vst1q_f32(p, x); }
Vec widen_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
Vec widen_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

}  // namespace

}  // namespace qn

// GCC unrolls these loops by itself for fewer sums, but so late for 20 that they stay in memory.
#define QN_UNROLL _Pragma("GCC unroll 5")
#include "ops/attention_simd.h"

namespace qn {

const AttentionKernels& attention_kernels_neon() { return kKernels; }

}  // namespace qn
