// What one step does to a block of 16 elements with nvfp4 or int8 moments, or with an NVFP4 weight: the formulas of
// docs/numerics.md, written once for the CPU and for CUDA. Everything is IEEE f32 + − · and fused multiply-adds,
// integers and tables of these, no operation whose rounding a processor may choose, so both give the same bytes.
//
// The step works in units of the stored √v of each element, where most numbers are near 1:
//
//   ĝ = g / √v          m̂ += a (ĝ − m̂)          ρ = v' / v = 1 + x,  x = b (ĝ² − 1)
//   u = m̂ / (√ρ + ε/√v)                          log2 v' = log2 v + log2 (1 + x)
//
// For x near 0, which is nearly always once b is small, short polynomials give u and log2 ρ; else the far_ functions.
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

// The 16 words of a block are quads 4 · block … 4 · block + 3 of the stream kPacked, seven rounds each (the fewest that
// pass BigCrush). An element draws 24 bits: of its own 16 for the weight and 8 for each moment, below which come bits
// that the block shares and another tensor drew for its own. So every probability is kept to 2^-24, and draws of one
// tensor are independent down to 2^-16 and 2^-8. Whether a scale grows is drawn from words 9 (weight) and 13
// (residual).
constexpr int kGrowthWord = 9, kResidualGrowthWord = 13;
QN_ADAMW_FN PhiloxWords packed_words(uint64_t seed, uint32_t parameter, uint32_t step, uint64_t quad) {
  const auto tag = static_cast<uint32_t>(RandomStream::kPacked) << 24;
  return philox4x32<7>(static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) | tag, parameter, step, seed);
}
QN_ADAMW_FN uint32_t weight_draw(const uint32_t* words, int i) {
  return (words[i / 2] >> (16 * (i % 2)) & 0xffffu) << 8 | (words[12] & 0xffu);
}
QN_ADAMW_FN uint32_t first_draw(const uint32_t* words, int i) {
  return (words[8 + i / 4] >> (8 * (i % 4)) & 0xffu) << 16 | (words[0] & 0xffffu);
}
QN_ADAMW_FN uint32_t second_draw(const uint32_t* words, int i) {
  return (words[12 + i / 4] >> (8 * (i % 4)) & 0xffu) << 16 | (words[4] & 0xffffu);
}

// --- Codes ----------------------------------------------------------------------------------------------------------

// t of magnitude at most largest_code, rounded stochastically: up in magnitude exactly when the fraction's 24 bits and
// the draw carry.
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t rounded_code(float t, uint32_t draw) {
  const float a = magnitude_of(t);
  if constexpr (kFormat == MomentFormat::kNvfp4) return rounded_e2m1(a, draw) | e2m1_sign_of(t);
  const auto whole = static_cast<int32_t>(a);
  const auto fraction = static_cast<int32_t>((a - static_cast<float>(whole)) * 0x1p24f);
  const int32_t q = whole + ((fraction + static_cast<int32_t>(draw)) >> 24);
  return static_cast<uint32_t>(t < 0 ? -q : q);
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
  int32_t largest = 0;
  QN_LANES(i) {
    const auto bits = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return float_of(static_cast<uint32_t>(largest));
}

// --- A row ----------------------------------------------------------------------------------------------------------

// The stored row of v is its centre, a multiple of ¼ octave, and, 2^17 times smaller, by how many quarters the centre
// is to move in the next step.
QN_ADAMW_FN float centre_of(float stored) { return nearest_quarter(stored); }
QN_ADAMW_FN float pending_move(float stored) { return (stored - nearest_quarter(stored)) * 0x1p15f; }

struct PackedRow {
  float a, keep_m, b;
  float gain, eps;       // g and ε to units of 2^(centre / 2)
  float near_limit;      // |√ρ + ε/√v − 1| up to here is near
  float centre, moved;   // of log2 v in this step; by how much it is above the stored one
  float root_move;       // 2^(−moved / 2)
  float level;           // of the stored first moments
  float gradient_scale;  // for fresh rows, as is
  float plain_eps;
};
constexpr float kNearLimit = 0.125f;

QN_ADAMW_FN PackedRow packed_row(const AdamwArgs& args, float stored_v, float stored_m) {
  const float centre = centre_of(stored_v), moved = args.b != 0 ? pending_move(stored_v) : 0.0f;
  const float unit = exp2_grid(-0.5f * centre);
  PackedRow row;
  row.a = args.a;
  row.keep_m = 1.0f - args.a;
  row.b = args.b;
  row.gain = args.gradient_scale * unit;
  row.eps = args.eps * unit;
  row.near_limit = args.b <= 0.25f ? kNearLimit : -1.0f;  // x >= −b
  row.centre = centre + moved;
  row.moved = moved;
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
// The row to store: the centre moves in the next step when the mean is over an octave away.
QN_ADAMW_FN float next_row(const PackedRow& row, int32_t eighths, int32_t live) {
  if (live == 0) return row.centre;
  const float mean = static_cast<float>(eighths) / (8.0f * static_cast<float>(live)) - row.moved;
  const float wanted = smaller(larger(row.centre + mean, -100.0f), 100.0f);
  const float move = magnitude_of(mean) > 1.0f ? nearest_quarter(wanted) - row.centre : 0.0f;
  return row.centre + move * 0x1p-15f;
}

// --- Moments of one element -----------------------------------------------------------------------------------------

struct PackedElement {
  float m;     // in units of the stored √v
  float u;     // not clipped
  float log2;  // of ρ
  float off;   // √ρ + ε/√v − 1: over the row's limit, take far_element
};
// inverse_root = 2^(−(log2 v − centre)/2); m = (1 − a) · the stored m̂.
QN_ADAMW_FN PackedElement near_element(const PackedRow& row, float g, float inverse_root, float m) {
  PackedElement e;
  const float gh = (g * row.gain) * inverse_root;
  e.m = fused(row.a, gh, m);
  const float x = fused(row.b * gh, gh, -row.b);
  // On [−.25, .29]: √(1 + x) to 1e-4, log2 (1 + x) to 1.3e-4 of itself; 1 / (1 + off) to 4e-5 on [−⅛, ⅛].
  const float half = fused(fused(0.06228836625814438f, x, -0.12712357938289642f), x, 0.5000193119049072f);
  e.off = fused(x, half, row.eps * inverse_root);
  const float q = fused(fused(-1.0131137371063232f, e.off, 1.0131139755249023f), e.off, -1.0f);
  e.u = e.m * fused(q, e.off, 1.0f);
  const float log = fused(fused(fused(-0.35859915614128113f, x, 0.5017682909965515f), x, -0.7218341827392578f), x,
                          1.4425084590911865f);
  e.log2 = x * log;
  return e;
}

// 1 / √x to 5e-6 and 1 / x to 7e-6, for x from 2^-60 to 2^80: a guess from the bits and two Newton steps.
QN_ADAMW_FN float inverse_root_near(float x) {
  float y = float_of(0x5f3759dfu - (bits_of(x) >> 1));
  const float half = 0.5f * x;
  y *= fused(-(half * y), y, 1.5f);
  return y * fused(-(half * y), y, 1.5f);
}
QN_ADAMW_FN float inverse_near(float x) {
  float y = float_of(0x7ef311c3u - bits_of(x));
  y = fused(y, fused(-x, y, 1.0f), y);
  return fused(y, fused(-x, y, 1.0f), y);
}
// The same for any ρ. |ĝ| is cut at 2^30.
QN_ADAMW_FN PackedElement far_element(const PackedRow& row, float g, float inverse_root, float m) {
  PackedElement e;
  const float gh = smaller(larger((g * row.gain) * inverse_root, -0x1p30f), 0x1p30f);
  e.m = fused(row.a, gh, m);
  const float rho = larger(1.0f + fused(row.b * gh, gh, -row.b), 0x1p-40f);
  const float root = rho * inverse_root_near(rho);
  e.u = e.m * inverse_near(smaller(fused(row.eps, inverse_root, root), 0x1p80f));
  e.log2 = log2_near(rho);
  e.off = 0;
  return e;
}
QN_ADAMW_FN float clipped_update(float u) { return smaller(larger(u, -kUpdateClip), kUpdateClip); }

// --- Second moments of a block ---------------------------------------------------------------------------------------

// √v of a code under scale S in units of 2^(centre / 2), inverted; for −code it is √v itself.
QN_ADAMW_FN float inverse_root_of(float value, float S) { return exp2_grid(-0.5f * (value * S)); }

// The scale of a block whose log2 v reach `reach` octaves from the centre: it shrinks by an octave a step and grows as
// far as needed.
template <MomentFormat kFormat>
QN_ADAMW_FN int reaching_octave(int first, float reach) {
  int k = first;
  float S = float_of(static_cast<uint32_t>(first + kFirstOctave + 127) << 23);
  while (k < kOctaves - 1 && reach > largest_code(kFormat) * S) {
    ++k;
    S *= 2;
  }
  return k;
}

// For a block that cannot keep its scale, or whose row's centre moved. t f32[16], in: log2 v in units of the old scale,
// out: of the new one, in reach of the codes; as the codes have it where nothing changed.
template <MomentFormat kFormat>
QN_ADAMW_FN void rescale_octaves(float moved, const uint32_t* codes, uint8_t& scale, float* t) {
  constexpr float kLargest = kFormat == MomentFormat::kNvfp4 ? 6.0f : 127.0f;
  const int k = octave_index(scale);
  const float S = e4m3_value(scale);
  float octaves[16];
  int32_t differs = 0;
  QN_LANES(i) {
    octaves[i] = larger(t[i] * S - moved, -kOctavesBelowCentre);
    t[i] = code_value<kFormat>(codes[i]);
    differs |= octaves[i] != t[i] * S ? 1 : 0;
  }
  if (differs == 0) return;
  scale = octave_code(reaching_octave<kFormat>(k > 0 ? k - 1 : 0, amax_of_block(octaves)));
  const float inverse = 1.0f / e4m3_value(scale);
  QN_LANES(i) t[i] = smaller(larger(octaves[i] * inverse, -kLargest), kLargest);
}

// log2 of ρ for each element: codes and scale of v in and out.
template <MomentFormat kFormat>
QN_ADAMW_FN void step_octaves(const PackedRow& row, uint32_t* codes, uint8_t& scale, const float* log2,
                              const uint32_t* draws) {
  const float inverse = 1.0f / e4m3_value(scale), floor = -kOctavesBelowCentre * inverse;
  const float largest = largest_code(kFormat);
  float t[16], raised[16];
  QN_LANES(i) {
    t[i] = fused(log2[i], inverse, code_value<kFormat>(codes[i]));
    raised[i] = larger(t[i], floor);
  }
  const float reach = amax_of_block(raised);
  if (row.moved != 0 || reach > largest || (reach <= 0.5f * largest && octave_index(scale) > 0)) {
    rescale_octaves<kFormat>(row.moved, codes, scale, t);
    QN_LANES(i) raised[i] = t[i];
  }
  QN_LANES(i) codes[i] = with_zero_of<kFormat>(rounded_code<kFormat>(raised[i], draws[i]), codes[i]);
}

// --- First moments of a block ----------------------------------------------------------------------------------------

// m in units of √v needs no level of its own for the row: scales from 2^-15 on and values up to 42 (int8: 889) will do
// when |u| <= 3.
constexpr float kMomentLevel = 0x1p-6f;

// The largest f32 not above 1 / S for which amax · inverse <= largest, unless S is the largest scale there is.
QN_ADAMW_FN float inverse_within(float inverse, float amax, float largest) {
  return amax * inverse > largest ? float_of(bits_of(inverse) - 1) : inverse;
}
// 1 / (e4m3(scale) · kMomentLevel); 1 for 0.
QN_ADAMW_FN float inverse_moment_scale(uint32_t scale) {
  return scale == 0 ? 1.0f : 1.0f / (e4m3_value(scale) * kMomentLevel);
}
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t moment_scale(float amax) {
  return e4m3_round_up(amax * (1.0f / (largest_code(kFormat) * kMomentLevel)));
}
template <MomentFormat kFormat>
QN_ADAMW_FN uint8_t store_first(uint32_t* codes, const float* m, const uint32_t* draws) {
  const float amax = amax_of_block(m), largest = largest_code(kFormat);
  const uint32_t scale = moment_scale<kFormat>(amax);
  const float inverse = inverse_within(inverse_moment_scale(scale), amax, largest);
  QN_LANES(i) {
    const float t = smaller(larger(m[i] * inverse, -largest), largest);
    codes[i] = rounded_code<kFormat>(t, draws[i]);
  }
  return static_cast<uint8_t>(scale);
}

// --- Both moments of a block -----------------------------------------------------------------------------------------

// g f32[16] in, u out; codes and scales in and out.
template <MomentFormat kFormat>
QN_ADAMW_FN void step_packed_moments(const PackedRow& row, uint32_t* m_codes, uint8_t& m_scale, uint32_t* v_codes,
                                     uint8_t& v_scale, const float* g, float* u, const uint32_t* m_draws,
                                     const uint32_t* v_draws) {
  const float S = e4m3_value(v_scale), kept = row.keep_m * (e4m3_value(m_scale) * row.level);
  float m[16], log2[16], inverse_root[16];
  int32_t far = 0;
  QN_LANES(i) {
    inverse_root[i] = inverse_root_of(code_value<kFormat>(v_codes[i]), S);
    const PackedElement e = near_element(row, g[i], inverse_root[i], code_value<kFormat>(m_codes[i]) * kept);
    m[i] = e.m;
    u[i] = clipped_update(e.u);
    log2[i] = e.log2;
    far |= magnitude_of(e.off) <= row.near_limit ? 0 : 1;
  }
  if (far != 0) {
    QN_LANES(i) {
      const float kept_m = code_value<kFormat>(m_codes[i]) * kept;
      const bool near = magnitude_of(near_element(row, g[i], inverse_root[i], kept_m).off) <= row.near_limit;
      const PackedElement e = far_element(row, g[i], inverse_root[i], kept_m);
      m[i] = near ? m[i] : e.m;
      u[i] = near ? u[i] : clipped_update(e.u);
      log2[i] = near ? log2[i] : e.log2;
    }
  }
  QN_LANES(i) m[i] = m[i] * inverse_root_of(-code_value<kFormat>(v_codes[i]), S) * row.root_move;
  step_octaves<kFormat>(row, v_codes, v_scale, log2, v_draws);
  const float next_S = e4m3_value(v_scale);
  QN_LANES(i) m[i] *= inverse_root_of(code_value<kFormat>(v_codes[i]), next_S);
  m_scale = store_first<kFormat>(m_codes, m, m_draws);
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
  const float largest = largest_code(kFormat);
  float octaves[16];
  QN_LANES(i) octaves[i] = larger(log2_near(v[i]) - centre, -kOctavesBelowCentre);
  v_scale = octave_code(reaching_octave<kFormat>(0, amax_of_block(octaves)));
  const float S = e4m3_value(v_scale), inverse = 1.0f / S;
  QN_LANES(i) {
    v_codes[i] = rounded_code<kFormat>(smaller(larger(octaves[i] * inverse, -largest), largest), v_draws[i]);
    m[i] *= exp2_grid(-0.5f * (centre + code_value<kFormat>(v_codes[i]) * S));
  }
  m_scale = store_first<kFormat>(m_codes, m, m_draws);
}

// --- Weights in NVFP4 ------------------------------------------------------------------------------------------------

// A block of scale 0 moves in units of the smallest scale.
QN_ADAMW_FN float weight_unit(uint32_t scale) { return e4m3_value(scale > 0 ? scale : 1u); }

// Codes of x f32[16] under a scale that sticky_scale() chose; codes in: the old ones.
template <bool kStochastic>
QN_ADAMW_FN void codes_under(uint32_t* codes, const StickyScale& next, const float* x, const uint32_t* draws) {
  const float S = e4m3_value(next.code), limit = next.limit, boost = kStochastic ? next.boost : 0.0f;
  QN_LANES(i) codes[i] = sticky_code<kStochastic>(x[i], codes[i], S, limit, boost, kStochastic ? draws[i] : 0u);
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

// For a block whose scale changes. t f32[16] in units of the old one.
QN_ADAMW_FN void rescale_weights(uint32_t* codes, uint8_t& scale, const StickyScale& next, const float* t,
                                 const uint32_t* draws) {
  const float unit = weight_unit(scale);
  float x[16];
  int32_t moved = 0;
  QN_LANES(i) {
    moved |= t[i] != weight_base(codes[i], scale) ? 1 : 0;
    x[i] = t[i] * unit;
  }
  if (moved == 0) return;
  scale = static_cast<uint8_t>(next.code);
  codes_under<true>(codes, next, x, draws);
}

// For a block that keeps its scale: what is beyond 6 is cut.
QN_ADAMW_FN void settle_weights(uint32_t* codes, uint32_t scale, const float* t, const uint32_t* draws) {
  if (scale == 0) return;
  QN_LANES(i) {
    const uint32_t code = rounded_e2m1(smaller(magnitude_of(t[i]), 6.0f), draws[i]) | e2m1_sign_of(t[i]);
    codes[i] = with_zero_of<MomentFormat::kNvfp4>(code, codes[i]);
  }
}

// `codes` under stochastic rounding and sticky scales, u f32[16]; codes and scale in and out. A block that keeps its
// scale is worked on in units of it.
QN_ADAMW_FN void step_weights(const AdamwArgs& args, uint32_t* codes, uint8_t& scale, const float* u,
                              const uint32_t* draws, uint32_t growth, int32_t& saturated) {
  const float unit = weight_unit(scale), rate = weight_rate(args, unit);
  float t[16];
  QN_LANES(i) t[i] = fused(rate, u[i], weight_base(codes[i], scale) * args.keep);
  const StickyScale next = sticky_scale(scale, amax_of_block(t) * unit, growth, saturated);
  if (next.code != scale) {
    rescale_weights(codes, scale, next, t, draws);
  } else {
    settle_weights(codes, scale, t, draws);
  }
}

}  // namespace qn::adamw
