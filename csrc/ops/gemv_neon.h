// Shared by linear_neon.cpp and gemv_neon.cpp alone. Everything inline is internal to each of them.
#pragma once

#include "ops/linear_kernels.h"
#include "ops/neon_lanes.h"

namespace qn {

constexpr int64_t kGemvTokensNeon = 4;  // four sums, four products and eight decoded vectors of 32 registers
constexpr int64_t kGemvChunkNeon = 16;  // a block: its even columns, then its odd ones

void gemv_order_neon(float* ordered, const float* x, int64_t K);
void gemv_nvfp4_neon(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bnb4_neon(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f32_neon(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f16_neon(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bf16_neon(const GemvArgs& args, int64_t begin, int64_t end);

// The values of 16 codes, one a byte: low[i] of the codes in bytes 0 .. 7 and high[i] of those in bytes 8 .. 15.
// An E2M1 value has at most two significant bits, so that its f32 is zero below the upper 16 bits: two lookups give
// those, and interleaving with zeros the rest. No conversion, nothing rounds.
static inline void e2m1_values(float32x4_t low[2], float32x4_t high[2], uint8x16_t codes) {
  //                               0   .5    1    1.5   2    3     4    6, then the same with the sign bit
  static const uint8_t kUpper[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                     0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
  static const uint8_t kLower[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
                                     0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
  const uint8x16_t upper = vqtbl1q_u8(vld1q_u8(kUpper), codes), lower = vqtbl1q_u8(vld1q_u8(kLower), codes);
  const uint16x8_t zero = vdupq_n_u16(0);
  const uint16x8_t first = vreinterpretq_u16_u8(vzip1q_u8(lower, upper));
  const uint16x8_t second = vreinterpretq_u16_u8(vzip2q_u8(lower, upper));
  low[0] = vreinterpretq_f32_u16(vzip1q_u16(zero, first));
  low[1] = vreinterpretq_f32_u16(vzip2q_u16(zero, first));
  high[0] = vreinterpretq_f32_u16(vzip1q_u16(zero, second));
  high[1] = vreinterpretq_f32_u16(vzip2q_u16(zero, second));
}

// The four bytes of sixteen f32 values, one register for each.
static inline uint8x16x4_t bnb4_table(const float* values) {
  return vld4q_u8(reinterpret_cast<const uint8_t*>(values));
}

// As e2m1_values, by a table of any values: a lookup for each byte of an f32.
static inline void bnb4_values(float32x4_t low[2], float32x4_t high[2], const uint8x16x4_t& table, uint8x16_t codes) {
  const uint8x16_t byte0 = vqtbl1q_u8(table.val[0], codes), byte1 = vqtbl1q_u8(table.val[1], codes);
  const uint8x16_t byte2 = vqtbl1q_u8(table.val[2], codes), byte3 = vqtbl1q_u8(table.val[3], codes);
  const uint16x8_t lower0 = vreinterpretq_u16_u8(vzip1q_u8(byte0, byte1));
  const uint16x8_t lower1 = vreinterpretq_u16_u8(vzip2q_u8(byte0, byte1));
  const uint16x8_t upper0 = vreinterpretq_u16_u8(vzip1q_u8(byte2, byte3));
  const uint16x8_t upper1 = vreinterpretq_u16_u8(vzip2q_u8(byte2, byte3));
  low[0] = vreinterpretq_f32_u16(vzip1q_u16(lower0, upper0));
  low[1] = vreinterpretq_f32_u16(vzip2q_u16(lower0, upper0));
  high[0] = vreinterpretq_f32_u16(vzip1q_u16(lower1, upper1));
  high[1] = vreinterpretq_f32_u16(vzip2q_u16(lower1, upper1));
}

// E4M3 (never negative here) shifted by 7 is an f16 2^8 too small, subnormals included, and the conversion is exact.
constexpr float kE4M3AsF16 = 256.0f;

// The first `count` of four scales, 2^8 too small, and zeros.
static inline float32x4_t small_scales(const uint8_t* scales, int64_t count) {
  uint32_t bytes = 0;
  if (count >= 4) {
    __builtin_memcpy(&bytes, scales, 4);
  } else {
    for (int64_t i = 0; i < count; ++i) bytes |= static_cast<uint32_t>(scales[i]) << (8 * i);
  }
  return widen_f16(vget_low_u16(vshll_n_u8(vcreate_u8(bytes), 7)));
}

}  // namespace qn
