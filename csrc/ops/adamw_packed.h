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

// The code of a magnitude, rounded stochastically: up exactly when the fraction's 24 bits and the draw carry. Just
// beyond the largest code it may be the next index, 8 for nvfp4 or 128 for int8.
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t rounded_magnitude(float a, uint32_t draw) {
  if constexpr (kFormat == MomentFormat::kNvfp4) return rounded_e2m1(a, draw);
  const auto whole = static_cast<int32_t>(a);
  const auto fraction = static_cast<int32_t>((a - static_cast<float>(whole)) * 0x1p24f);
  return static_cast<uint32_t>(whole + ((fraction + static_cast<int32_t>(draw)) >> 24));
}
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t signed_code(uint32_t magnitude, float t) {
  if constexpr (kFormat == MomentFormat::kNvfp4) return magnitude | e2m1_sign_of(t);
  return t < 0 ? 0u - magnitude : magnitude;
}
// t of magnitude at most largest_code.
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t rounded_code(float t, uint32_t draw) {
  return signed_code<kFormat>(rounded_magnitude<kFormat>(magnitude_of(t), draw), t);
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

// Of finite numbers. A CPU compares their bits, which needs no order of zeros; a GPU has an instruction for it.
QN_ADAMW_FN float amax_of_block(const float* x) {
#if defined(__CUDA_ARCH__)
  float largest = 0;
  QN_LANES(i) largest = fmaxf(largest, magnitude_of(x[i]));
  return largest;
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

// The stored row of v is its centre, a multiple of ¼ octave, and, 2^17 times smaller, by how many quarters the centre
// is to move in the next step.
QN_ADAMW_FN float centre_of(float stored) { return nearest_quarter(stored); }
QN_ADAMW_FN float pending_move(float stored) { return (stored - nearest_quarter(stored)) * 0x1p15f; }

struct PackedRow {
  // Of the step.
  float a, keep_m, b;
  float gradient_scale, plain_eps;
  float root_b, a_x;  // near_element works with h = √b ĝ; a / √b
  float near_limit;   // |√ρ + ε/√v − 1| up to here is near
  // Of the row.
  float gain, gain_x, eps;  // g, √b g and ε to units of 2^(centre / 2)
  float centre, moved;      // of log2 v in this step; by how much it is above the stored one
  float root_move;          // 2^(−moved / 2)
  float level;              // of the stored first moments
};
constexpr float kNearLimit = 0.125f;

QN_ADAMW_FN PackedRow packed_step(const AdamwArgs& args) {
  PackedRow row{};
  row.a = args.a;
  row.keep_m = 1.0f - args.a;
  row.b = args.b;
  row.gradient_scale = args.gradient_scale;
  row.plain_eps = args.eps;
  row.root_b = square_root(args.b);
  row.a_x = args.a / row.root_b;
  row.near_limit = args.b > 0 && args.b <= 0.25f ? kNearLimit : -1.0f;  // x >= −b
  return row;
}
QN_ADAMW_FN void enter_row(PackedRow& row, float stored_v, float stored_m) {
  const float centre = centre_of(stored_v), moved = row.b != 0 ? pending_move(stored_v) : 0.0f;
  const float unit = exp2_grid(-0.5f * centre);
  row.gain = row.gradient_scale * unit;
  row.gain_x = row.gain * row.root_b;
  row.eps = row.plain_eps * unit;
  row.centre = centre + moved;
  row.moved = moved;
  row.root_move = moved == 0 ? 1.0f : exp2_grid(-0.5f * moved);
  row.level = stored_m;
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

struct NearElement {
  float m;     // in units of the stored √v
  float log2;  // of ρ
  float off;   // √ρ + ε/√v − 1: over the row's limit, take far_element
};
// inverse_root = 2^(−(log2 v − centre)/2); m = (1 − a) · the stored m̂.
QN_ADAMW_FN NearElement near_element(const PackedRow& row, float g, float inverse_root, float m) {
  NearElement e;
  const float h = (g * row.gain_x) * inverse_root, x = fused(h, h, -row.b);
  e.m = fused(row.a_x, h, m);
  // On [−.25, .29]: √(1 + x) − 1 to 4e-4 and log2 (1 + x) to 1.3e-4 of themselves.
  const float half = fused(fused(0.06228836625814438f, x, -0.12712357938289642f), x, 0.5000193119049072f);
  e.off = fused(x, half, row.eps * inverse_root);
  const float log = fused(fused(fused(-0.35859915614128113f, x, 0.5017682909965515f), x, -0.7218341827392578f), x,
                          1.4425084590911865f);
  e.log2 = x * log;
  return e;
}
// u = m / (1 + off), to 4e-5 of itself on [−⅛, ⅛]; not clipped.
QN_ADAMW_FN float near_update(float m, float off) {
  const float q = fused(fused(-1.0131137371063232f, off, 1.0131139755249023f), off, -1.0f);
  return m * fused(q, off, 1.0f);
}

struct FarElement {
  float m, log2, u;
};
// The same for any ρ. |ĝ| is cut at 2^30.
QN_ADAMW_FN FarElement far_element(const PackedRow& row, float g, float inverse_root, float m) {
  FarElement e;
  const float gh = smaller(larger((g * row.gain) * inverse_root, -0x1p30f), 0x1p30f);
  e.m = fused(row.a, gh, m);
  const float rho = larger(1.0f + fused(row.b * gh, gh, -row.b), 0x1p-40f);
  const float root = rho * inverse_root_near(rho);
  e.u = e.m * inverse_near(smaller(fused(row.eps, inverse_root, root), 0x1p80f));
  e.log2 = log2_near(rho);
  return e;
}
QN_ADAMW_FN float clipped_update(float u) { return smaller(larger(u, -kUpdateClip), kUpdateClip); }

// --- Second moments of a block ---------------------------------------------------------------------------------------

// √v of a code under scale S in units of 2^(centre / 2), inverted; for −code it is √v itself.
QN_ADAMW_FN float inverse_root_of(float value, float S) { return exp2_grid(-0.5f * (value * S)); }

// The first scale from `first` on whose codes reach `reach` octaves from the centre.
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

// For a block that cannot keep its scale, or whose row's centre moved: to a scale from `first` on. t f32[16], in: log2
// v in units of the old scale, out: of the new one, in reach of the codes; as the codes have it where nothing changed.
template <MomentFormat kFormat>
QN_ADAMW_FN void rescale_octaves(float moved, int first, const uint32_t* codes, uint8_t& scale, float* t) {
  constexpr float kLargest = kFormat == MomentFormat::kNvfp4 ? 6.0f : 127.0f;
  const float S = e4m3_value(scale);
  float octaves[16];
  int32_t differs = 0;
  QN_LANES(i) {
    octaves[i] = larger(t[i] * S - moved, -kOctavesBelowCentre);
    t[i] = code_value<kFormat>(codes[i]);
    differs |= octaves[i] != t[i] * S ? 1 : 0;
  }
  if (differs == 0) return;
  scale = octave_code(reaching_octave<kFormat>(first, amax_of_block(octaves)));
  const float inverse = 1.0f / e4m3_value(scale);
  QN_LANES(i) t[i] = smaller(larger(octaves[i] * inverse, -kLargest), kLargest);
}
QN_ADAMW_FN int octave_below(int k) { return k > 0 ? k - 1 : 0; }
QN_ADAMW_FN int octave_above(int k) { return k < kOctaves - 1 ? k + 1 : k; }

// log2 of ρ for each element: codes and scale of v in and out. A scale doubles when an element beyond the largest code
// rounds up, to what is half as large a code of the doubled scale: the same draw takes it there, so its average is
// kept. It halves when all codes double to others, which loses nothing.
template <MomentFormat kFormat>
QN_ADAMW_FN void step_octaves(const PackedRow& row, uint32_t* codes, uint8_t& scale, const float* log2,
                              const uint32_t* draws) {
  constexpr int32_t kLargestIndex = kFormat == MomentFormat::kNvfp4 ? 7 : 127;
  constexpr float kNextCode = kFormat == MomentFormat::kNvfp4 ? 8.0f : 128.0f;
  const float inverse = 1.0f / e4m3_value(scale), floor = -kOctavesBelowCentre * inverse;
  const int k = octave_index(scale);
  float t[16], raised[16];
  uint32_t magnitudes[16];
  int32_t most = 0;
  QN_LANES(i) {
    t[i] = fused(log2[i], inverse, code_value<kFormat>(codes[i]));
    raised[i] = larger(t[i], floor);
    magnitudes[i] = rounded_magnitude<kFormat>(smaller(magnitude_of(raised[i]), kNextCode), draws[i]);
    most = static_cast<int32_t>(magnitudes[i]) > most ? static_cast<int32_t>(magnitudes[i]) : most;
  }
  const bool shrinks = amax_of_block(raised) <= 0.5f * largest_code(kFormat) && k > 0;
  if (row.moved != 0 || shrinks || most > kLargestIndex) {
    const int first = row.moved == 0 && !shrinks ? octave_above(k) : octave_below(k);
    rescale_octaves<kFormat>(row.moved, first, codes, scale, t);
    QN_LANES(i) {
      raised[i] = t[i];
      magnitudes[i] = rounded_magnitude<kFormat>(magnitude_of(t[i]), draws[i]);
    }
  }
  QN_LANES(i) codes[i] = with_zero_of<kFormat>(signed_code<kFormat>(magnitudes[i], raised[i]), codes[i]);
}

// --- First moments of a block ----------------------------------------------------------------------------------------

// m in units of √v needs no level of its own for the row: scales from 2^-15 on and values up to 42 (int8: 889) will do
// when |u| <= 3.
constexpr float kMomentLevel = 0x1p-6f;

// The largest f32 not above 1 / S for which amax · inverse <= largest, unless S is the largest scale there is.
QN_ADAMW_FN float inverse_within(float inverse, float amax, float largest) {
  return amax * inverse > largest ? float_of(bits_of(inverse) - 1) : inverse;
}
// 1 / e4m3(scale), of 0 as of the smallest scale.
QN_ADAMW_FN float inverse_scale(uint32_t scale) { return 1.0f / e4m3_value(scale > 0 ? scale : 1u); }
template <MomentFormat kFormat>
QN_ADAMW_FN uint32_t moment_scale(float amax) {
  return e4m3_round_up(amax * (1.0f / (largest_code(kFormat) * kMomentLevel)));
}
// amax: at least the largest magnitude in m.
template <MomentFormat kFormat>
QN_ADAMW_FN uint8_t store_first(uint32_t* codes, const float* m, float amax, const uint32_t* draws) {
  const float largest = largest_code(kFormat);
  const uint32_t scale = moment_scale<kFormat>(amax);
  const float inverse = inverse_within(inverse_scale(scale) * (1 / kMomentLevel), amax, largest);
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
  float m[16], log2[16], off[16], inverse_root[16];
  int32_t far = 0;
  QN_LANES(i) {
    inverse_root[i] = inverse_root_of(code_value<kFormat>(v_codes[i]), S);
    const NearElement e = near_element(row, g[i], inverse_root[i], code_value<kFormat>(m_codes[i]) * kept);
    m[i] = e.m;
    u[i] = clipped_update(near_update(e.m, e.off));
    log2[i] = e.log2;
    off[i] = e.off;
    far |= magnitude_of(e.off) <= row.near_limit ? 0 : 1;
  }
  if (far != 0) {
    QN_LANES(i) {
      const bool near = magnitude_of(off[i]) <= row.near_limit;
      const FarElement e = far_element(row, g[i], inverse_root[i], code_value<kFormat>(m_codes[i]) * kept);
      m[i] = near ? m[i] : e.m;
      u[i] = near ? u[i] : clipped_update(e.u);
      log2[i] = near ? log2[i] : e.log2;
    }
  }
  uint32_t before[16];
  QN_LANES(i) before[i] = v_codes[i];
  float amax = amax_of_block(m);
  step_octaves<kFormat>(row, v_codes, v_scale, log2, v_draws);
  const float next_S = e4m3_value(v_scale);
  const bool moves = next_S != S || row.moved != 0;
  QN_LANES(i) {
    const float root = inverse_root_of(-code_value<kFormat>(before[i]), S);
    const float in_new = m[i] * root * row.root_move * inverse_root_of(code_value<kFormat>(v_codes[i]), next_S);
    m[i] = moves || v_codes[i] != before[i] ? in_new : m[i];
  }
  // Unless all are in new units, also of what a change of code made smaller: a GPU has that at hand.
  amax = larger(amax_of_block(m), moves ? 0.0f : amax);
  m_scale = store_first<kFormat>(m_codes, m, amax, m_draws);
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
  m_scale = store_first<kFormat>(m_codes, m, amax_of_block(m), m_draws);
}

// --- Weights in NVFP4 ------------------------------------------------------------------------------------------------

// A block of scale 0 moves in units of the smallest scale, as inverse_scale() has it.
QN_ADAMW_FN float weight_unit(uint32_t scale) { return e4m3_value(scale > 0 ? scale : 1u); }

// The nearest codes of a master x f32[16], in units of the second level, under a sticky scale, in and out.
QN_ADAMW_FN void step_nearest_codes(uint32_t* codes, uint8_t& scale, const float* x, uint32_t growth,
                                    int32_t& saturated) {
  const StickyScale next = sticky_scale(scale, amax_of_block(x), growth, saturated);
  scale = static_cast<uint8_t>(next.code);
  const float S = e4m3_value(next.code);
  QN_LANES(i) codes[i] = nearest_code(x[i], codes[i], S);
}

// |t| in units of the old scale to units of the next.
struct Rescale {
  float limit, boost, factor;
};
QN_ADAMW_FN Rescale rescale_of(uint32_t scale, const StickyScale& next, float inverse_next) {
  return {scale > 0 ? 6.0f : 0.0f, next.boost, weight_unit(scale) * inverse_next};
}
QN_ADAMW_FN float rescaled(float a, const Rescale& rescale) {
  return fused(larger(a - rescale.limit, 0.0f), rescale.boost, a) * rescale.factor;
}

// The code of t, |t| cut at 6, with the draws of a stochastic rounding or, for all, kNearest (ties up in magnitude).
constexpr uint32_t kNearest = 1u << 23;
QN_ADAMW_FN uint32_t weight_code(float t, uint32_t draw, uint32_t old) {
  const uint32_t magnitude = rounded_e2m1(smaller(magnitude_of(t), 6.0f), draw);
  return with_zero_of<MomentFormat::kNvfp4>(magnitude | e2m1_sign_of(t), old);
}
// t f32[16] and its scale to the scale that sticky_scale() chose.
QN_ADAMW_FN void rescale_weights(float* t, uint8_t& scale, const StickyScale& next) {
  if (next.code == scale) return;
  const Rescale rescale = rescale_of(scale, next, inverse_scale(next.code));
  scale = static_cast<uint8_t>(next.code);
  QN_LANES(i) t[i] = float_of(bits_of(rescaled(magnitude_of(t[i]), rescale)) | (bits_of(t[i]) & 0x80000000u));
}

// `codes` under stochastic rounding and sticky scales, u f32[16]; codes and scale in and out. All is done in units of
// the scale.
QN_ADAMW_FN void step_weights(const AdamwArgs& args, uint32_t* codes, uint8_t& scale, const float* u,
                              const uint32_t* draws, uint32_t growth, int32_t& saturated) {
  const float unit = weight_unit(scale), rate = -(args.rate * inverse_scale(scale));
  float t[16];
  int32_t moved = 0;
  QN_LANES(i) {
    const float base = scale > 0 ? e2m1_value(codes[i]) : 0.0f;
    t[i] = fused(rate, u[i], base * args.keep);
    moved |= t[i] != base ? 1 : 0;
  }
  const StickyScale next = sticky_scale(scale, amax_of_block(t) * unit, growth, saturated);
  if (next.code == 0 || moved == 0) return;
  rescale_weights(t, scale, next);
  QN_LANES(i) codes[i] = weight_code(t[i], draws[i], codes[i]);
}

// Nearest codes under a sticky scale, and what they miss stochastically into the residual.
QN_ADAMW_FN void step_residual_weights(const AdamwArgs& args, uint32_t* codes, uint8_t& scale, uint32_t* residual,
                                       uint8_t& residual_scale, const float* u, const uint32_t* draws, uint32_t growth,
                                       uint32_t residual_growth, int32_t& saturated) {
  const float unit = weight_unit(scale), rate = -(args.rate * inverse_scale(scale));
  const float rest = e4m3_value(residual_scale) * kResidualUnit * inverse_scale(scale);  // in units of the codes
  float t[16];
  int32_t moved = 0;
  QN_LANES(i) {
    const float base = fused(e2m1_value(residual[i]), rest, scale > 0 ? e2m1_value(codes[i]) : 0.0f);
    t[i] = fused(rate, u[i], base * args.keep);
    moved |= t[i] != base ? 1 : 0;
  }
  if (moved == 0) return;
  StickyScale next = sticky_scale(scale, amax_of_block(t) * unit, growth, saturated);
  next.boost = 0;
  rescale_weights(t, scale, next);
  const float to_rest = weight_unit(scale) * (1 / kResidualUnit) * inverse_scale(residual_scale);
  QN_LANES(i) {
    codes[i] = scale > 0 ? weight_code(t[i], kNearest, codes[i]) : codes[i];
    t[i] = (t[i] - (scale > 0 ? e2m1_value(codes[i]) : 0.0f)) * to_rest;
  }
  next = sticky_scale(residual_scale, amax_of_block(t) * weight_unit(residual_scale), residual_growth, saturated);
  if (next.code == 0) return;
  rescale_weights(t, residual_scale, next);
  QN_LANES(i) residual[i] = weight_code(t[i], draws[i], residual[i]);
}

}  // namespace qn::adamw
