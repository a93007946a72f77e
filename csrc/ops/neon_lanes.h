// Four floats at a time from and to memory, for *_neon.cpp alone. NEON is part of every arm64 processor, so these files
// need no flags of their own; everything here is still internal to each of them.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace qn {

// Four values, or the first `lanes` of them (none when it is not positive) and `fill`. By lanes and not by a loop,
// which GCC makes a call of memcpy: around one, sums could not stay in registers.
static inline float32x4_t load_f32(const float* p, int64_t lanes, float fill = 0.0f) {
  if (lanes >= 4) return vld1q_f32(p);
  float32x4_t value = vdupq_n_f32(fill);
  if (lanes > 0) value = vld1q_lane_f32(p, value, 0);
  if (lanes > 1) value = vld1q_lane_f32(p + 1, value, 1);
  if (lanes > 2) value = vld1q_lane_f32(p + 2, value, 2);
  return value;
}

static inline void store_f32(float* p, int64_t lanes, float32x4_t value) {
  if (lanes >= 4) {
    vst1q_f32(p, value);
    return;
  }
  if (lanes > 0) vst1q_lane_f32(p, value, 0);
  if (lanes > 1) vst1q_lane_f32(p + 1, value, 1);
  if (lanes > 2) vst1q_lane_f32(p + 2, value, 2);
}

static inline uint16x4_t load_halves(const uint16_t* p, int64_t lanes) {
  if (lanes >= 4) return vld1_u16(p);
  uint16x4_t value = vdup_n_u16(0);
  if (lanes > 0) value = vld1_lane_u16(p, value, 0);
  if (lanes > 1) value = vld1_lane_u16(p + 1, value, 1);
  if (lanes > 2) value = vld1_lane_u16(p + 2, value, 2);
  return value;
}

static inline void store_halves(uint16_t* p, int64_t lanes, uint16x4_t value) {
  if (lanes >= 4) {
    vst1_u16(p, value);
    return;
  }
  if (lanes > 0) vst1_lane_u16(p, value, 0);
  if (lanes > 1) vst1_lane_u16(p + 1, value, 1);
  if (lanes > 2) vst1_lane_u16(p + 2, value, 2);
}

static inline float32x4_t widen_f16(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
static inline float32x4_t widen_bf16(uint16x4_t halves) { return vreinterpretq_f32_u32(vshll_n_u16(halves, 16)); }

// The 4 x 4 block whose rows r held: r[i] becomes column i.
static inline void transpose_4x4(float32x4_t r[4]) {
  const float64x2_t low01 = vreinterpretq_f64_f32(vzip1q_f32(r[0], r[1]));
  const float64x2_t high01 = vreinterpretq_f64_f32(vzip2q_f32(r[0], r[1]));
  const float64x2_t low23 = vreinterpretq_f64_f32(vzip1q_f32(r[2], r[3]));
  const float64x2_t high23 = vreinterpretq_f64_f32(vzip2q_f32(r[2], r[3]));
  r[0] = vreinterpretq_f32_f64(vzip1q_f64(low01, low23));
  r[1] = vreinterpretq_f32_f64(vzip2q_f64(low01, low23));
  r[2] = vreinterpretq_f32_f64(vzip1q_f64(high01, high23));
  r[3] = vreinterpretq_f32_f64(vzip2q_f64(high01, high23));
}

}  // namespace qn
