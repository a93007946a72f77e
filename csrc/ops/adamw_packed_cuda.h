// A block of 16 with NVFP4 moments and NVFP4 weights in the registers of one CUDA thread: the functions of
// ops/adamw_packed.h with codes kept in words and values looked up in shared memory, where every lane has its own
// banks. Included by adamw.cu.
#pragma once

#include "ops/adamw_tables_cuda.h"

#define QN_PAIRS(p) _Pragma("unroll") for (int p = 0; p < 8; ++p)

namespace qn {
namespace {

// --- Arithmetic ------------------------------------------------------------------------------------------------------

// IEEE √ and 1 / x as __fsqrt_rn and __frcp_rn compute them of numbers that are not near the ends of the range, without
// their tests for those.
__device__ __forceinline__ float root_in_range(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  const float root = x * y;
  return fused(fused(-root, root, x), 0.5f * y, root);
}
__device__ __forceinline__ float inverse_in_range(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fused(y, fused(-x, y, 1.0f), y);
}
// step_element() for such numbers; of an infinite v u is none.
__device__ __forceinline__ PackedElement step_in_range(const PackedRow& row, float g, float m, float v) {
  PackedElement e;
  const float G = g * row.gain;
  e.m = fused(row.a, G, m);
  e.v = fused(row.b, fused(G, G, -v), v);
  e.u = e.m * inverse_in_range(root_in_range(e.v) + row.eps);
  return e;
}

// octaves_of(); `one`: bits of 1.0.
__device__ __forceinline__ float octaves_in_range(float v, const PackedRow& row, uint32_t one) {
  const auto steps = static_cast<float>(static_cast<int32_t>(bits_of(v) - row.one));
  const float h = fused(float_of((bits_of(v) & 0x7fffffu) | one), kOctaveSlope, kOctaveMiddle);
  return fused(steps, 0x1p-23f, fused(-h, h, kOctaveTwelfth));
}

// Bytes of two words by the nibbles of a selector, whose sign bits ask for the sign of a byte in all of its bits.
__device__ __forceinline__ uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}
// Byte 3 of four words.
__device__ __forceinline__ uint32_t top_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}

// The sign of each byte 3 in all bits of a byte.
__device__ __forceinline__ uint32_t signs_of(float a, float b, float c, float d) {
  return __byte_perm(permuted(bits_of(a), bits_of(b), 0x00fb), permuted(bits_of(c), bits_of(d), 0x00fb), 0x5410);
}

// How far t · unit goes, and whose sign what becomes zero has.
enum class Reach {
  kSix,         // 6 at most; t's
  kEight,       // under 8, which is cut at 6; t's
  kEightOfOld,  // the same; that of the code before
};
// The word of codes whose positions (e2m1_position()), times 4 and with a draw of 24 bits added, are sum[8]. 8, from
// above 6, becomes 7.
template <Reach kReach>
__device__ __forceinline__ uint32_t word_of_sums(const uint32_t* sum, const float* t, uint32_t old) {
  uint32_t magnitudes = top_bytes(sum[0], sum[2], sum[4], sum[6]) + (top_bytes(sum[1], sum[3], sum[5], sum[7]) << 4);
  if constexpr (kReach != Reach::kSix) magnitudes -= (magnitudes >> 3) & 0x11111111u;
  const uint32_t even = signs_of(t[0], t[2], t[4], t[6]), odd = signs_of(t[1], t[3], t[5], t[7]);
  uint32_t signs = (even & 0x0f0f0f0fu) | (odd & 0xf0f0f0f0u);
  if constexpr (kReach == Reach::kEightOfOld) {
    const uint32_t nonzero = magnitudes + 0x77777777u;  // in bit 3 of each nibble
    signs = (signs & nonzero) | (old & ~nonzero);
  }
  return magnitudes | (signs & 0x88888888u);
}
// Codes of t[8] · unit · 2^126, rounded with the draws of their words, or to the
// nearest, ties to even. A GPU is as fast with subnormal numbers.
template <Reach kReach, uint32_t (*draw)(uint32_t)>
__device__ __forceinline__ uint32_t rounded_word(const float* t, float unit, const uint32_t* words, uint32_t old) {
  uint32_t sum[8];
  QN_EACH_OF(8) sum[i] = bits_of(magnitude_of(t[i] * unit)) * 4 + draw(words[i]);
  return word_of_sums<kReach>(sum, t, old);
}
__device__ __forceinline__ uint32_t nearest_word(const float* t, float unit, uint32_t old) {
  uint32_t sum[8];
  QN_EACH_OF(8) {
    const uint32_t position = bits_of(magnitude_of(t[i] * unit));
    sum[i] = position * 4 + even_draw(position);
  }
  return word_of_sums<Reach::kEightOfOld>(sum, t, old);
}

// t[16] and its unit as rounded_word() wants them, where some are 8 or more.
__device__ __forceinline__ void cut_at_six(float* t, float& unit) {
  QN_EACH_OF(16) t[i] = smaller(larger(t[i] * unit, -6 * 0x1p-126f), 6 * 0x1p-126f);
  unit = 1;
}

// add_block() by words.
__device__ __forceinline__ void add_words(CentreSum& sum, const Nvfp4Block& block, float S) {
  // Twice the magnitudes by code, a byte each. A selector with its sign bit set gives the sign of the byte, 0.
  constexpr uint32_t kLow = 0x03020100u, kHigh = 0x0c080604u;
  uint32_t selectors[4], magnitudes[4];
  QN_EACH_OF(4) {
    selectors[i] = i % 2 ? block.word[i / 2] >> 16 : block.word[i / 2];
    magnitudes[i] = selectors[i] & 0x7777u;
  }
  // Σ of positive codes less Σ of negative ones: those counted twice less all.
  int halves = 0, live = 16;
  if (S <= 1.0f) {
    QN_EACH_OF(4) {
      halves = __dp4a(static_cast<int>(permuted(kLow, kHigh, magnitudes[i])), -1, halves);
      halves = __dp4a(static_cast<int>(permuted(kLow, kHigh, selectors[i])), 0x02020202, halves);
    }
  } else {  // negative codes of such scales reach the floor
    const uint32_t low = S < 8.0f ? 0xffffffffu : 0xffffffu;
    const uint32_t high = S < 4.0f ? 0xffffffu : (S < 8.0f ? 0xffu : 0u);
    const uint32_t dead_low = ~low & 0x01010101u, dead_high = ~high & 0x01010101u;
    const uint32_t twice_low = kLow + (kLow & low), twice_high = kHigh + (kHigh & high);
    QN_EACH_OF(4) {
      halves = __dp4a(static_cast<int>(permuted(kLow & low, kHigh & high, magnitudes[i])), -1, halves);
      halves = __dp4a(static_cast<int>(permuted(twice_low, twice_high, selectors[i])), 0x01010101, halves);
      live = __dp4a(static_cast<int>(permuted(dead_low, dead_high, magnitudes[i])), -1, live);
      live = __dp4a(static_cast<int>(permuted(dead_low, dead_high, selectors[i])), 0x01010101, live);
    }
  }
  sum.eighths += static_cast<int32_t>(static_cast<float>(halves) * (S * 4.0f));
  sum.live += live;
}

// --- A block ---------------------------------------------------------------------------------------------------------

// The gradient of a block as it is stored.
template <bool kBf16>
struct Gradient {
  float x[16];
  __device__ __forceinline__ void fetch(const AdamwArgs& args, int64_t offset) { load_f32(x, args.g + offset); }
  __device__ float operator[](int i) const { return x[i]; }
};
template <>
struct Gradient<true> {
  uint32_t word[8];
  __device__ __forceinline__ void fetch(const AdamwArgs& args, int64_t offset) {
    QN_EACH_OF(2) {
      const uint4 eight = reinterpret_cast<const uint4*>(args.g_bf16 + offset)[i];
      word[4 * i] = eight.x;
      word[4 * i + 1] = eight.y;
      word[4 * i + 2] = eight.z;
      word[4 * i + 3] = eight.w;
    }
  }
  __device__ float operator[](int i) const { return float_of(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16); }
};

// A block on its way through step_packed_moments(): after the first half m and the octaves of v are those of this step.
struct SteppedBlock {
  float m[16], octaves[16];
};
// u f32[16] out; returns Σ u².
template <typename G>
__device__ __forceinline__ float step_elements(const PackedRow& row, const TableLane& tables, const Nvfp4Block& m_block,
                                               const Nvfp4Block& v_block, const G& g, float* u, SteppedBlock& block) {
  const float kept = row.keep_m * (e4m3_value(m_block.scale) * row.level);
  const auto scale = static_cast<uint32_t>(octave_index(v_block.scale));
  const Nibbles v_codes(v_block.word);
  float squares[4] = {};
  QN_PAIRS(p) {
    const float2 old_m = tables.pair(m_block.word, p);
    _Pragma("unroll") for (int half = 0; half < 2; ++half) {
      const int i = 2 * p + half;
      const float2 old = tables.root(scale, v_codes, i);
      const PackedElement e = step_in_range(row, g[i], ((half ? old_m.y : old_m.x) * kept) * old.y, old.x);
      block.m[i] = e.m;
      block.octaves[i] = octaves_in_range(e.v, row, tables.one);
      u[i] = e.u;
      squares[i / 4] = fused(e.u, e.u, squares[i / 4]);
    }
  }
  const float most = larger(larger(squares[0], squares[1]), larger(squares[2], squares[3]));
  const bool finite = (squares[0] + squares[1]) + (squares[2] + squares[3]) < __builtin_inff();
  // No |u| is over 3 unless the squares of its quad are over 9.
  if (!finite || most > kUpdateClip * kUpdateClip) {
    if (!finite) {  // of an infinite v u is none, and should be zero
      QN_EACH_OF(16) u[i] = u[i] == u[i] ? u[i] : block.m[i] * 0.0f;
    }
    _Pragma("unroll") for (int quad = 0; quad < 4; ++quad) {
      squares[quad] = 0;
      QN_EACH_OF(4) {
        float& each = u[4 * quad + i];
        each = clipped_update(each);
        squares[quad] = fused(each, each, squares[quad]);
      }
    }
  }
  return (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

__device__ __forceinline__ void store_moments(const PackedRow& row, const TableLane& tables, Nvfp4Block& m_block,
                                              Nvfp4Block& v_block, SteppedBlock& block, const PackedArgs& args,
                                              int64_t at, BlockWords& words) {
  float reach = amax_of_block(block.octaves);
  if (!(reach <= kOctavesBelowCentre)) {
    QN_EACH_OF(16) block.octaves[i] = bounded_octaves<MomentFormat::kNvfp4>(block.octaves[i]);
    reach = amax_of_block(block.octaves);
  }
  const int old_index = octave_index(v_block.scale);
  const int index = row.b != 0 ? reaching_scale<MomentFormat::kNvfp4>(old_index - 1, reach) : old_index;
  // 2^-126 over the scale, some of them subnormal.
  const float inverse_v = float_of(static_cast<uint32_t>(127 - kFirstOctave - index) << 23) * 0x1p-126f;
  QN_EACH_OF(2) {
    draw_words(words, args, args.keys, at, 2 * i);
    draw_words(words, args, args.keys, at, 2 * i + 1);
    const uint32_t word = rounded_word<Reach::kSix, second_draw>(block.octaves + 8 * i, inverse_v, words.w + 8 * i, 0);
    v_block.word[i] = row.b != 0 ? word : v_block.word[i];
  }
  v_block.scale = octave_code(index);

  // m in units of the v that is stored now, times 2^-20.
  float* m = block.m;
  const Nibbles v_codes(v_block.word);
  QN_EACH_OF(16) m[i] *= tables.scaled_inverse(static_cast<uint32_t>(index), v_codes, i);
  const float amax = amax_of_block(m) * 0x1p20f;
  const uint32_t scale = moment_scale<MomentFormat::kNvfp4>(amax * row.root_move);
  const float inverse = (scale == 0 ? 1.0f : inverse_in_range(e4m3_value(scale) * kMomentLevel)) * row.root_move;
  float unit = inverse * 0x1p-106f;
  if (!(amax * inverse < 8.0f)) cut_at_six(m, unit);
  QN_EACH_OF(2) m_block.word[i] = rounded_word<Reach::kEight, first_draw>(m + 8 * i, unit, words.w + 8 * i, 0);
  m_block.scale = static_cast<uint8_t>(scale);
}

// step_weights() of ops/adamw_packed.h.
__device__ __forceinline__ void step_weight_words(const AdamwArgs& args, const TableLane& tables, Nvfp4Block& block,
                                                  const float* u, const BlockWords& words, int32_t& saturated) {
  const float scale = e4m3_value(block.scale > 0 ? block.scale : 1u);
  const float rate = -(args.rate * inverse_in_range(scale));
  float t[16];
  QN_PAIRS(p) {
    const float2 kept = tables.kept_pair(block.word, p);
    t[2 * p] = fused(rate, u[2 * p], kept.x);
    t[2 * p + 1] = fused(rate, u[2 * p + 1], kept.y);
  }
  if (block.scale == 0) {
    QN_EACH_OF(16) t[i] = rate * u[i];
  }
  float reach = amax_of_block(t);
  const StickyScale next = sticky_scale(block.scale, reach * scale, growth_of(words, kGrowthElement), saturated);
  float unit = 0x1p-126f;
  if (next.code != block.scale) {
    bool moved = next.code > block.scale;
    if (!moved) {
      QN_PAIRS(p) {
        const float2 value = tables.pair(block.word, p);
        moved |= t[2 * p] != value.x || t[2 * p + 1] != value.y;
      }
    }
    if (!moved) return;
    const WeightRescale rescale = weight_rescale(block.scale, next);
    QN_EACH_OF(16) t[i] = rescaled_weight(rescale, t[i]);
    reach = rescaled_weight(rescale, reach);
    block.scale = static_cast<uint8_t>(next.code);
  }
  if (!(reach < 8.0f)) cut_at_six(t, unit);
  if (block.scale == 0) return;
  QN_EACH_OF(2) {
    block.word[i] = rounded_word<Reach::kEightOfOld, weight_draw>(t + 8 * i, unit, words.w + 8 * i, block.word[i]);
  }
}

// sticky_inverse() for 2^-20 of what is rounded.
__device__ __forceinline__ float unit_under(uint32_t scale, float S) {
  return scale > 0 ? inverse_in_range(S) * 0x1p-106f : 0.0f;
}
// step_nearest() of ops/adamw_rows.h with a residual.
__device__ __forceinline__ void step_residual_words(const AdamwArgs& args, const TableLane& tables, Nvfp4Block& block,
                                                    Nvfp4Block& residual, const float* u, const BlockWords& words,
                                                    int32_t& saturated) {
  const float S = e4m3_value(block.scale), rest = e4m3_value(residual.scale) * kResidualUnit;
  float x[16];
  bool moved = false;
  QN_PAIRS(p) {
    const float2 value = tables.pair(block.word, p), behind = tables.pair(residual.word, p);
    _Pragma("unroll") for (int half = 0; half < 2; ++half) {
      const int i = 2 * p + half;
      const float base = (half ? value.y : value.x) * S + (half ? behind.y : behind.x) * rest;
      x[i] = base * args.keep - args.rate * u[i];
      moved |= x[i] != base;
    }
  }
  if (!moved) return;
  const StickyScale next = sticky_scale(block.scale, amax_of_block(x), growth_of(words, kGrowthElement), saturated);
  const float next_S = e4m3_value(next.code);
  {
    float t[16], unit = unit_under(next.code, next_S);
    QN_EACH_OF(16) t[i] = x[i] * 0x1p-20f;
    if (!(amax_of_block(t) * unit < 8 * 0x1p-126f)) cut_at_six(t, unit);
    QN_EACH_OF(2) block.word[i] = nearest_word(t + 8 * i, unit, block.word[i]);
    block.scale = static_cast<uint8_t>(next.code);
  }
  QN_PAIRS(p) {
    const float2 value = tables.pair(block.word, p);
    x[2 * p] = (x[2 * p] - value.x * next_S) * (1 / kResidualUnit);
    x[2 * p + 1] = (x[2 * p + 1] - value.y * next_S) * (1 / kResidualUnit);
  }
  const StickyScale behind =
      sticky_scale(residual.scale, amax_of_block(x), growth_of(words, kResidualGrowthElement), saturated);
  float unit = unit_under(behind.code, e4m3_value(behind.code));
  if (behind.boost != 0) {
    QN_EACH_OF(16) {
      const float magnitude = magnitude_of(x[i]);
      const float stretched = magnitude + larger(magnitude - behind.limit, 0.0f) * behind.boost;
      x[i] = float_of(bits_of(stretched) | (bits_of(x[i]) & 0x80000000u));
    }
  }
  QN_EACH_OF(16) x[i] *= 0x1p-20f;
  if (!(amax_of_block(x) * unit < 8 * 0x1p-126f)) cut_at_six(x, unit);
  QN_EACH_OF(2) {
    residual.word[i] =
        rounded_word<Reach::kEightOfOld, weight_draw>(x + 8 * i, unit, words.w + 8 * i, residual.word[i]);
  }
  residual.scale = static_cast<uint8_t>(behind.code);
}

}  // namespace
}  // namespace qn
