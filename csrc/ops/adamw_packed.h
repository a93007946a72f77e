// What one step does to a block of 16 elements with nvfp4 or int8 moments, or with an NVFP4 weight: the formulas of
// docs/numerics.md, written once for the CPU and for CUDA. Everything is IEEE f32 + − · / √ and fused multiply-adds,
// and integers, no operation whose rounding a processor may choose, so both give the same bytes.
//
// The step works in units of the row's centre, where numbers are not far from 1:
//
//   G = g · 2^(−centre/2)      m += a (G − m)      v += b (G² − v)      u = m · 1 / (√v + ε)
//
// Blocks do not know of each other: a row tells them its centre of log2 v, which follows the mean with a delay.
#pragma once

#include "ops/adamw_elements.h"

// A loop over the 16 elements of a block, in registers on a GPU; early complete unrolling would hide it from a CPU's
// vectoriser.
#if defined(__CUDA_ARCH__)
#define QN_LANES(i) _Pragma("unroll") for (int i = 0; i < 16; ++i)
#elif defined(__CUDACC__)
#define QN_LANES(i) for (int i = 0; i < 16; ++i)
#else
#define QN_LANES(i) _Pragma("GCC unroll 1") for (int i = 0; i < 16; ++i)
#endif

namespace qn::adamw {

// --- Random bits ----------------------------------------------------------------------------------------------------

// Every element has a word of the stream kPacked, seven rounds (the fewest that pass BigCrush), and draws 24 bits of it
// for each tensor. The upper ones no other draw has at its top: bytes 2 and 1 for the weight, 3 for the first moment,
// 0 for the second; below them come bytes that are another tensor's. So every probability is kept to 2^-24, elements
// are independent, and the tensors of one element are down to 2^-16 and 2^-8. Whether a scale grows is drawn from the
// moments' own bytes of two elements, 9 and 10 (weight) or 13 and 14 (residual).
constexpr int kGrowthElement = 9, kResidualGrowthElement = 13;
QN_ADAMW_FN PhiloxWords packed_words(const PhiloxKeys<7>& keys, uint32_t parameter, uint32_t step, uint64_t quad) {
  const auto tag = static_cast<uint32_t>(RandomStream::kPacked) << 24;
  return philox4x32(static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) | tag, parameter, step, keys);
}
QN_ADAMW_FN uint32_t weight_draw(uint32_t word) { return word & 0xffffffu; }
QN_ADAMW_FN uint32_t first_draw(uint32_t word) { return word >> 8; }
QN_ADAMW_FN uint32_t second_draw(uint32_t word) { return (word << 16 & 0xff0000u) | word >> 16; }
QN_ADAMW_FN uint32_t growth_word(uint32_t word, uint32_t next) {
  return (word & 0xff000000u) | (word << 16 & 0xff0000u) | (next >> 16 & 0xff00u);
}

// --- Codes ----------------------------------------------------------------------------------------------------------

// x · unit, cut at the largest code and rounded stochastically: up in magnitude exactly when the fraction's 24 bits and
// the draw carry.
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t rounded_code(float x, float unit, uint32_t draw) {
  if constexpr (kFormat == MomentFormat::kNvfp4) {
    return ((e2m1_position(magnitude_of(x), unit) * 4 + draw) >> 24) | e2m1_sign_of(x);
  }
  const float a = smaller(magnitude_of(x) * unit, 127.0f);
  const auto whole = static_cast<int32_t>(a);
  const auto fraction = static_cast<int32_t>((a - static_cast<float>(whole)) * 0x1p24f);
  const int32_t q = whole + ((fraction + static_cast<int32_t>(draw)) >> 24);
  return static_cast<uint32_t>(x < 0 ? -q : q);
}
template <MomentFormat kFormat>
QN_ADAMW_FN float code_value(uint32_t code) {
  if constexpr (kFormat == MomentFormat::kNvfp4) return e2m1_value(code);
  return static_cast<float>(static_cast<int32_t>(code));
}
// What rounds to zero keeps the sign bit that it had, so that an element that does not move keeps its code.
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t with_zero_of(uint32_t code, uint32_t old) {
  if constexpr (kFormat == MomentFormat::kNvfp4) return (code & 7u) != 0 ? code : old & 8u;
  return code;
}

QN_ADAMW_FN float amax_of_block(const float* x) {
#if defined(__CUDA_ARCH__)
  float most = 0;
  QN_LANES(i) most = fmaxf(most, fabsf(x[i]));
  return most;
#else
  int32_t largest = 0;
  QN_LANES(i) {
    const auto bits = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return float_of(static_cast<uint32_t>(largest));
#endif
}

// --- A row ----------------------------------------------------------------------------------------------------------

// The stored row of v is its centre, a multiple of ¼ octave, and, 2^15 times smaller, by how many octaves the centre is
// to move in the next step.
QN_ADAMW_FN float centre_of(float stored) { return nearest_quarter(stored); }
QN_ADAMW_FN float pending_move(float stored) { return (stored - nearest_quarter(stored)) * 0x1p15f; }

struct PackedRow {
  float a, keep_m, b;
  float gain, eps;       // g and ε to units of 2^(centre / 2)
  float centre, moved;   // of log2 v after this step; by how many octaves it is above the stored one
  uint32_t one;          // bits of 2^moved
  float root_move;       // 2^(−moved / 2)
  float level;           // of the stored first moments
  float gradient_scale;  // for fresh rows, as is
  float plain_eps;
};

QN_ADAMW_FN PackedRow packed_row(const AdamwArgs& args, float stored_v, float stored_m) {
  const float centre = centre_of(stored_v), moved = args.b != 0 ? pending_move(stored_v) : 0.0f;
  const float unit = exp2_grid(-0.5f * centre);
  PackedRow row;
  row.a = args.a;
  row.keep_m = 1.0f - args.a;
  row.b = smaller(args.b, 0x1.ffffep-1f);  // v stays positive
  row.gain = args.gradient_scale * unit;
  row.eps = args.eps * unit;
  row.centre = centre + moved;
  row.moved = moved;
  row.one = 0x3f800000u + (static_cast<uint32_t>(static_cast<int32_t>(moved)) << 23);
  row.root_move = exp2_grid(-0.5f * moved);
  row.level = stored_m;
  row.gradient_scale = args.gradient_scale;
  row.plain_eps = args.eps;
  return row;
}

// Where a row's stored second moments lie: per block, log2 v relative to the centre over its elements above the floor,
// in eighths of an octave. Sums of integers, so that their order does not matter.
struct CentreSum {
  int32_t eighths = 0, live = 0;
};
template <MomentFormat kFormat>
QN_ADAMW_FN void add_block(CentreSum& sum, const uint32_t* v_codes, float S) {
  float total = 0;
  int32_t live = 0;
  QN_LANES(i) {
    const float octaves = code_value<kFormat>(v_codes[i]) * S;
    const bool lives = octaves > -kOctavesBelowCentre;
    total += lives ? octaves : 0.0f;  // exact
    live += lives ? 1 : 0;
  }
  sum.eighths += static_cast<int32_t>(total * 8.0f);
  sum.live += live;
}
// The row to store: the centre moves in the next step, by whole octaves, when the mean is over one away.
QN_ADAMW_FN float next_row(const PackedRow& row, int32_t eighths, int32_t live) {
  if (live == 0) return row.centre;
  const float mean = static_cast<float>(eighths) / (8.0f * static_cast<float>(live)) - row.moved;
  const float wanted = smaller(larger(row.centre + mean, -100.0f), 100.0f);
  const float move = magnitude_of(mean) > 1.0f ? nearest_whole(wanted - row.centre) : 0.0f;
  return row.centre + move * 0x1p-15f;
}

// --- Octaves of a second moment -------------------------------------------------------------------------------------

// The logarithm that v is stored in is log2 to 0.3 % of an octave: n + z + z (1 − z) / 3 for v = 2^n (1 + z). Its slope
// is continuous and within 8 % of 1 / (v ln 2), and it has a short inverse, so that what is stored decodes to what was
// encoded.
//
// v of a multiple of 2^-7 octaves, cut to [-120, 120].
QN_ADAMW_FN float second_of(float octaves) {
  const float bounded = smaller(larger(octaves, -120.0f), 120.0f);
  const int32_t n = static_cast<int32_t>(bounded + 1024.0f) - 1024;
  const float f = bounded - static_cast<float>(n);
  const float mantissa = 3.0f - square_root(4.0f - 3.0f * f);
  return mantissa * float_of(static_cast<uint32_t>(n + 127) << 23);
}
// (m − 1.5) / √3, whose square is a twelfth less z (1 − z) / 3.
constexpr float kOctaveSlope = 0.57735026919f, kOctaveMiddle = -0.86602540378f, kOctaveTwelfth = 0x1.555556p-4f;
// The octaves of a positive v over the float whose bits are `one`, a power of two.
QN_ADAMW_FN float octaves_of(float v, uint32_t one) {
  const auto steps = static_cast<float>(static_cast<int32_t>(bits_of(v) - one));
  const float h = fused(float_of((bits_of(v) & 0x7fffffu) | 0x3f800000u), kOctaveSlope, kOctaveMiddle);
  return fused(steps, 0x1p-23f, fused(-h, h, kOctaveTwelfth));
}
// √v and its inverse in which first moments are stored, from the same octaves: log2 taken at its word.
QN_ADAMW_FN float root_unit(float octaves) { return exp2_grid(0.5f * octaves); }
QN_ADAMW_FN float inverse_root_unit(float octaves) { return exp2_grid(-0.5f * octaves); }

// The index of the smallest scale with which codes reach `reach` octaves; it shrinks by an octave a step.
template <MomentFormat kFormat>
QN_ADAMW_FN int reaching_scale(int least, float reach) {
  constexpr uint32_t kLargest = kFormat == MomentFormat::kNvfp4 ? 0x40c00000u : 0x42fe0000u;  // 6, 127
  constexpr auto kExponent = static_cast<int32_t>(kLargest >> 23) + kFirstOctave;
  const int32_t needed =
      static_cast<int32_t>((bits_of(reach) + (0x7fffffu - (kLargest & 0x7fffffu))) >> 23) - kExponent;
  const int32_t index = needed > least ? needed : least;
  return index < 0 ? 0 : (index < kOctaves - 1 ? index : kOctaves - 1);
}
template <MomentFormat kFormat>
QN_ADAMW_FN float bounded_octaves(float octaves) {
  constexpr float kMost = (kFormat == MomentFormat::kNvfp4 ? 6.0f : 127.0f) * 8;
  return smaller(larger(octaves, -kOctavesBelowCentre), kMost);
}
// Codes and scale of octaves f32[16]; the scale in: the old one.
template <MomentFormat kFormat>
QN_ADAMW_FN void store_second(uint32_t* codes, uint8_t& scale, float* octaves, int least, const uint32_t* draws) {
  QN_LANES(i) octaves[i] = bounded_octaves<kFormat>(octaves[i]);
  scale = octave_code(reaching_scale<kFormat>(least, amax_of_block(octaves)));
  const float inverse = 1.0f / e4m3_value(scale);
  QN_LANES(i) codes[i] = rounded_code<kFormat>(octaves[i], inverse, draws[i]);
}

// --- Moments of one element -----------------------------------------------------------------------------------------

struct PackedElement {
  float m, v;
  float u;  // not clipped
};
// m and v in units of the centre, m times (1 − a). v may become infinite, where a gradient jumps by 10^19.
QN_ADAMW_FN PackedElement step_element(const PackedRow& row, float g, float m, float v) {
  PackedElement e;
  const float G = g * row.gain;
  e.m = fused(row.a, G, m);
  e.v = fused(row.b, fused(G, G, -v), v);
  e.u = e.m * inverse_of(square_root(e.v) + row.eps);
  return e;
}
QN_ADAMW_FN float clipped_update(float u) { return smaller(larger(u, -kUpdateClip), kUpdateClip); }

// --- First moments of a block ----------------------------------------------------------------------------------------

// m in units of √v needs no level of its own for the row: scales from 2^-15 on and values up to 42 (int8: 889) will do
// when |u| <= 3.
constexpr float kMomentLevel = 0x1p-6f;

// 1 / (e4m3(scale) · kMomentLevel); 1 for 0.
QN_ADAMW_FN float inverse_moment_scale(uint32_t scale) {
  return scale == 0 ? 1.0f : inverse_of(e4m3_value(scale) * kMomentLevel);
}
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t moment_scale(float amax) {
  return e4m3_round_up(amax * (1.0f / (largest_code(kFormat) * kMomentLevel)));
}
// Of m f32[16] times `unit`.
template <MomentFormat kFormat>
QN_ADAMW_FN uint8_t store_first(uint32_t* codes, const float* m, float unit, const uint32_t* draws) {
  const uint32_t scale = moment_scale<kFormat>(amax_of_block(m) * unit);
  const float inverse = inverse_moment_scale(scale) * unit;
  QN_LANES(i) codes[i] = rounded_code<kFormat>(m[i], inverse, draws[i]);
  return static_cast<uint8_t>(scale);
}

// --- Both moments of a block -----------------------------------------------------------------------------------------

// g f32[16] in, u out; codes and scales in and out.
template <MomentFormat kFormat>
QN_ADAMW_FN void step_packed_moments(const PackedRow& row, uint32_t* m_codes, uint8_t& m_scale, uint32_t* v_codes,
                                     uint8_t& v_scale, const float* g, float* u, const uint32_t* m_draws,
                                     const uint32_t* v_draws) {
  const float S = e4m3_value(v_scale), kept = row.keep_m * (e4m3_value(m_scale) * row.level);
  float m[16], octaves[16];
  QN_LANES(i) {
    const float old = code_value<kFormat>(v_codes[i]) * S;
    const float kept_m = (code_value<kFormat>(m_codes[i]) * kept) * root_unit(old);
    const PackedElement e = step_element(row, g[i], kept_m, second_of(old));
    m[i] = e.m;
    u[i] = clipped_update(e.u);
    octaves[i] = octaves_of(e.v, row.one);
  }
  if (row.b != 0) store_second<kFormat>(v_codes, v_scale, octaves, octave_index(v_scale) - 1, v_draws);
  const float next_S = e4m3_value(v_scale);
  QN_LANES(i) m[i] *= inverse_root_unit(code_value<kFormat>(v_codes[i]) * next_S);
  m_scale = store_first<kFormat>(m_codes, m, row.root_move, m_draws);
}

// --- Rows that stored nothing yet ------------------------------------------------------------------------------------

struct FreshElement {
  float m, v, u;
};
QN_ADAMW_FN FreshElement fresh_element(const PackedRow& row, float g) {
  const float scaled = g * row.gradient_scale;
  FreshElement e;
  e.m = row.a * scaled;
  e.v = smaller(larger(row.b * (scaled * scaled), kSmallestV), kLargestV);
  e.u = clipped_update(e.m / (square_root(e.v) + row.plain_eps));
  return e;
}
// Elements whose v is larger have seen a gradient.
constexpr float kLargestDead = 2 * kSmallestV;
QN_ADAMW_FN int32_t fresh_eighths(float v) { return static_cast<int32_t>(log2_near(v) * 8.0f); }
QN_ADAMW_FN float fresh_centre(int32_t eighths, int32_t live) {
  return nearest_quarter(static_cast<float>(eighths) / (8.0f * static_cast<float>(live)));
}

// Codes and scales of both moments; m, v f32[16] of fresh elements.
template <MomentFormat kFormat>
QN_ADAMW_FN void store_fresh(uint32_t* m_codes, uint8_t& m_scale, uint32_t* v_codes, uint8_t& v_scale, float centre,
                             float* m, const float* v, const uint32_t* m_draws, const uint32_t* v_draws) {
  const float unit = exp2_grid(-0.5f * centre);
  float octaves[16];
  QN_LANES(i) octaves[i] = octaves_of((v[i] * unit) * unit, 0x3f800000u);
  store_second<kFormat>(v_codes, v_scale, octaves, 0, v_draws);
  const float S = e4m3_value(v_scale);
  QN_LANES(i) m[i] = (m[i] * unit) * inverse_root_unit(code_value<kFormat>(v_codes[i]) * S);
  m_scale = store_first<kFormat>(m_codes, m, 1.0f, m_draws);
}

// --- Weights in NVFP4 ------------------------------------------------------------------------------------------------

// A block of scale 0 moves in units of the smallest scale.
QN_ADAMW_FN float weight_unit(uint32_t scale) { return e4m3_value(scale > 0 ? scale : 1u); }

// Codes of x f32[16] under a scale that sticky_scale() chose; codes in: the old ones.
template <bool kStochastic>
QN_ADAMW_FN void codes_under(uint32_t* codes, const StickyScale& next, const float* x, const uint32_t* draws) {
  const float inverse = sticky_inverse(next.code), limit = next.limit, boost = kStochastic ? next.boost : 0.0f;
  QN_LANES(i) codes[i] = sticky_code<kStochastic>(x[i], codes[i], inverse, limit, boost, kStochastic ? draws[i] : 0u);
}

// Codes and scale for x f32[16], in and out.
template <bool kStochastic>
QN_ADAMW_FN void sticky_block(uint32_t* codes, uint8_t& scale, const float* x, const uint32_t* draws, uint32_t growth,
                              int32_t& saturated) {
  const StickyScale next = sticky_scale(scale, amax_of_block(x), growth, saturated);
  scale = static_cast<uint8_t>(next.code);
  codes_under<kStochastic>(codes, next, x, draws);
}

// Where the codes stand, in units of weight_unit(scale), and where u f32[16] takes them.
QN_ADAMW_FN float weight_base(uint32_t code, uint32_t scale) { return scale > 0 ? e2m1_value(code) : 0.0f; }
QN_ADAMW_FN float weight_rate(const AdamwArgs& args, float unit) { return -(args.rate * (1.0f / unit)); }

// For a block whose scale changes, in: t in units of the old one, out: of the next. What is beyond the reach of the old
// scale was stretched by `boost`.
struct WeightRescale {
  float reach, boost, ratio;
};
QN_ADAMW_FN WeightRescale weight_rescale(uint32_t scale, const StickyScale& next) {
  return {scale > 0 ? 6.0f : 0.0f, next.boost, weight_unit(scale) * inverse_of(e4m3_value(next.code))};
}
QN_ADAMW_FN float rescaled_weight(const WeightRescale& rescale, float t) {
  const float beyond = t - smaller(larger(t, -rescale.reach), rescale.reach);
  return fused(beyond, rescale.boost, t) * rescale.ratio;
}

// `codes` under stochastic rounding and sticky scales, u f32[16]; codes and scale in and out. A block is worked on in
// units of its scale.
QN_ADAMW_FN void step_weights(const AdamwArgs& args, uint32_t* codes, uint8_t& scale, const float* u,
                              const uint32_t* draws, uint32_t growth, int32_t& saturated) {
  const float unit = weight_unit(scale), rate = weight_rate(args, unit);
  float t[16];
  QN_LANES(i) t[i] = fused(rate, u[i], weight_base(codes[i], scale) * args.keep);
  const StickyScale next = sticky_scale(scale, amax_of_block(t) * unit, growth, saturated);
  if (next.code != scale) {
    int32_t moved = 0;
    QN_LANES(i) moved |= t[i] != weight_base(codes[i], scale) ? 1 : 0;
    if (moved == 0) return;
    const WeightRescale rescale = weight_rescale(scale, next);
    QN_LANES(i) t[i] = rescaled_weight(rescale, t[i]);
    scale = static_cast<uint8_t>(next.code);
  } else if (scale == 0) {
    return;
  }
  QN_LANES(i) {
    const uint32_t code = rounded_e2m1(smaller(magnitude_of(t[i]), 6.0f), draws[i]) | e2m1_sign_of(t[i]);
    codes[i] = with_zero_of<MomentFormat::kNvfp4>(code, codes[i]);
  }
}

}  // namespace qn::adamw
