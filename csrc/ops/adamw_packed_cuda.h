// A block of 16 with NVFP4 moments and NVFP4 weights in the registers of one CUDA thread: the functions of
// ops/adamw_packed.h with codes kept in words, values looked up in shared memory two codes at a time, and what is rare
// (an element far from its v, a block whose scale changes) in functions that are not inlined. Included by adamw.cu.
#pragma once

#include "ops/adamw_blocks_cuda.h"

#define QN_PAIRS(p) _Pragma("unroll") for (int p = 0; p < 8; ++p)

namespace qn {
namespace {

// By the byte of two codes, the low nibble first: their values; and for each scale of a second moment 1 / √v in units
// of the row's centre. The byte with both signs flipped has √v.
struct PairTables {
  float2 values[256];
  float2 inverse_roots[kOctaves][256];
};

// All threads; ends without a barrier.
__device__ void fill_tables(PairTables& tables) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += threads) {
    const float low = e2m1_value(i & 15u), high = e2m1_value(static_cast<uint32_t>(i) >> 4);
    tables.values[i] = make_float2(low, high);
    for (int k = 0; k < kOctaves; ++k) {
      const float S = e4m3_value(octave_code(k));
      tables.inverse_roots[k][i] = make_float2(inverse_root_of(low, S), inverse_root_of(high, S));
    }
  }
}

// table[byte p of the two words] with `flip` applied to the byte.
__device__ __forceinline__ float2 pair_of(const float2* table, const uint32_t* words, int p, uint32_t flip = 0) {
  return table[((words[p / 4] >> (8 * (p % 4))) & 0xffu) ^ flip];
}

// --- Random bits and rounding ----------------------------------------------------------------------------------------

// weight_draw() and the others as one byte permutation each; `below` as they mask it.
struct WeightDraws {
  const uint32_t* words;
  uint32_t below;
  __device__ explicit WeightDraws(const BlockWords& block) : words(block.w), below(block.w[12] & 0xffu) {}
  __device__ uint32_t operator()(int i) const { return __byte_perm(words[i / 2], below, i % 2 ? 0x5324 : 0x5104); }
};
struct FirstDraws {
  const uint32_t* words;
  uint32_t below;
  __device__ explicit FirstDraws(const BlockWords& block) : words(block.w + 8), below(block.w[0] & 0xffffu) {}
  __device__ uint32_t operator()(int i) const {
    return __byte_perm(words[i / 4], below, 0x6054u | (static_cast<uint32_t>(i % 4) << 8));
  }
};
struct SecondDraws {
  const uint32_t* words;
  uint32_t below;
  __device__ explicit SecondDraws(const BlockWords& block) : words(block.w + 12), below(block.w[4] & 0xffffu) {}
  __device__ uint32_t operator()(int i) const {
    return __byte_perm(words[i / 4], below, 0x6054u | (static_cast<uint32_t>(i % 4) << 8));
  }
};

// Byte 3 of four words.
__device__ __forceinline__ uint32_t top_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}

// Codes of t[8] · 2^-unit, |t| < 8 of these units and cut at 6, rounded with draws first … first + 7. What becomes zero
// has the sign of its code in `old` (kZeroOfOld) or of t.
template <bool kZeroOfOld, typename Draws>
__device__ __forceinline__ uint32_t rounded_word(const float* t, const Draws& draws, int first, uint32_t old) {
  uint32_t sum[8], magnitudes;
  QN_EACH_OF(8) sum[i] = e2m1_position(magnitude_of(t[i])) * 4 + draws(first + i);
  magnitudes = top_bytes(sum[0], sum[2], sum[4], sum[6]) + (top_bytes(sum[1], sum[3], sum[5], sum[7]) << 4);
  magnitudes -= (magnitudes >> 3) & 0x11111111u;  // 8, from above 6, becomes 7
  const uint32_t even = top_bytes(bits_of(t[0]), bits_of(t[2]), bits_of(t[4]), bits_of(t[6])),
                 odd = top_bytes(bits_of(t[1]), bits_of(t[3]), bits_of(t[5]), bits_of(t[7]));
  uint32_t signs = (odd & 0x80808080u) | ((even >> 4) & 0x7f7f7f7fu);
  if constexpr (kZeroOfOld) {
    const uint32_t nonzero = magnitudes + 0x77777777u;  // in bit 3 of each nibble
    signs = (signs & nonzero) | (old & ~nonzero);
  }
  return magnitudes | (signs & 0x88888888u);
}

// --- What is rare ----------------------------------------------------------------------------------------------------

// Element i of a block, g as stored.
__device__ __noinline__ PackedElement far_one(const PackedRow& row, float g, float inverse_root, float m) {
  const PackedElement near = near_element(row, g, inverse_root, m);
  PackedElement e = magnitude_of(near.off) <= row.near_limit ? near : far_element(row, g, inverse_root, m);
  e.u = clipped_update(e.u);
  return e;
}

__device__ __noinline__ uint32_t rescale_second(float moved, Nvfp4Block block, float* t) {
  uint32_t codes[16];
  unpack_codes(codes, block);
  rescale_octaves<MomentFormat::kNvfp4>(moved, codes, block.scale, t);
  return block.scale;
}

// A weight block that changes its scale, has none, or is cut well above 6.
__device__ __noinline__ Nvfp4Block rescale_weight(const AdamwArgs& args, int64_t at, Nvfp4Block block, StickyScale next,
                                                  const float* t) {
  uint32_t codes[16], draws[16];
  unpack_codes(codes, block);
  weight_draws(draws, block_words(args, at));
  if (next.code != block.scale) {
    rescale_weights(codes, block.scale, next, t, draws);
  } else {
    settle_weights(codes, block.scale, t, draws);
  }
  return packed_block<MomentFormat::kNvfp4>(codes, block.scale);
}

// --- A block ---------------------------------------------------------------------------------------------------------

// The gradient of a block as it is stored.
template <bool kBf16>
struct Gradient {
  float x[16];
  __device__ Gradient(const AdamwArgs& args, int64_t offset) { load_f32(x, args.g + offset); }
  __device__ float operator[](int i) const { return x[i]; }
};
template <>
struct Gradient<true> {
  uint32_t word[8];
  __device__ Gradient(const AdamwArgs& args, int64_t offset) {
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

// step_packed_moments() and add_block() of ops/adamw_packed.h.
template <typename G>
__device__ __forceinline__ void step_nvfp4_moments(const PackedRow& row, const PairTables& tables, Nvfp4Block& m_block,
                                                   Nvfp4Block& v_block, const G& g, float* u, const BlockWords& words,
                                                   CentreSum& sum) {
  const float S = e4m3_value(v_block.scale), inverse = 1.0f / S;
  const float kept = row.keep_m * (e4m3_value(m_block.scale) * row.level);
  const int k = octave_index(v_block.scale);
  const float2* inverse_roots = tables.inverse_roots[k];
  float m[16], t[16], codes = 0;
  bool far = false;
  QN_PAIRS(p) {
    const float2 inverse_root = pair_of(inverse_roots, v_block.word, p);
    const float2 root = pair_of(inverse_roots, v_block.word, p, 0x88u);
    const float2 value = pair_of(tables.values, v_block.word, p), old_m = pair_of(tables.values, m_block.word, p);
    const PackedElement a = near_element(row, g[2 * p], inverse_root.x, old_m.x * kept);
    const PackedElement b = near_element(row, g[2 * p + 1], inverse_root.y, old_m.y * kept);
    m[2 * p] = a.m * root.x;
    m[2 * p + 1] = b.m * root.y;
    u[2 * p] = a.u;
    u[2 * p + 1] = b.u;
    t[2 * p] = fused(a.log2, inverse, value.x);
    t[2 * p + 1] = fused(b.log2, inverse, value.y);
    far |= !(magnitude_of(a.off) <= row.near_limit) | !(magnitude_of(b.off) <= row.near_limit);
    far |= !(magnitude_of(a.u) <= kUpdateClip) | !(magnitude_of(b.u) <= kUpdateClip);
    codes += value.x + value.y;
  }
  if (far) {
    QN_PAIRS(p) {
      const float2 inverse_root = pair_of(inverse_roots, v_block.word, p);
      const float2 root = pair_of(inverse_roots, v_block.word, p, 0x88u);
      const float2 value = pair_of(tables.values, v_block.word, p), old_m = pair_of(tables.values, m_block.word, p);
      const PackedElement a = far_one(row, g[2 * p], inverse_root.x, old_m.x * kept);
      const PackedElement b = far_one(row, g[2 * p + 1], inverse_root.y, old_m.y * kept);
      m[2 * p] = a.m * root.x;
      m[2 * p + 1] = b.m * root.y;
      u[2 * p] = a.u;
      u[2 * p + 1] = b.u;
      t[2 * p] = fused(a.log2, inverse, value.x);
      t[2 * p + 1] = fused(b.log2, inverse, value.y);
    }
  }
  // Where the stored v lie: below the floor are only codes of scales from 2 on.
  if (S <= 1.0f) {
    sum.eighths += static_cast<int32_t>(codes * S * 8.0f);
    sum.live += 16;
  } else {
    uint32_t old[16];
    unpack_codes(old, v_block);
    add_block<MomentFormat::kNvfp4>(sum, old, S);
  }

  // v. The floor matters to scales from 4 on, or beyond the reach of a smaller one.
  const float reach = amax_of_block(t);
  if (row.moved != 0 || !(reach <= 6.0f) || (reach <= 3.0f && k > 0) || S > 2.0f) {
    float local[16];
    QN_EACH_OF(16) local[i] = t[i];
    v_block.scale = static_cast<uint8_t>(rescale_second(row.moved, v_block, local));
    QN_EACH_OF(16) {
      t[i] = local[i];
      m[i] *= row.root_move;
    }
  }
  const SecondDraws second(words);
  QN_EACH_OF(2) v_block.word[i] = rounded_word<true>(t + 8 * i, second, 8 * i, v_block.word[i]);

  // m in units of the v that is stored now.
  const float2* next_roots = tables.inverse_roots[octave_index(v_block.scale)];
  QN_PAIRS(p) {
    const float2 inverse_root = pair_of(next_roots, v_block.word, p);
    m[2 * p] *= inverse_root.x;
    m[2 * p + 1] *= inverse_root.y;
  }
  const float amax = amax_of_block(m);
  const uint32_t scale = moment_scale<MomentFormat::kNvfp4>(amax);
  const float inverse_m = inverse_within(inverse_moment_scale(scale), amax, 6.0f);
  const FirstDraws first(words);
  QN_EACH_OF(16) m[i] *= inverse_m;
  if (amax * inverse_m >= 8.0f) QN_EACH_OF(16) m[i] = smaller(larger(m[i], -6.0f), 6.0f);
  QN_EACH_OF(2) m_block.word[i] = rounded_word<false>(m + 8 * i, first, 8 * i, 0);
  m_block.scale = static_cast<uint8_t>(scale);
}

// step_weights() of ops/adamw_packed.h.
__device__ __forceinline__ void step_weight_words(const AdamwArgs& args, const PairTables& tables, int64_t at,
                                                  Nvfp4Block& block, const float* u, const BlockWords& words,
                                                  int32_t& saturated) {
  const float unit = weight_unit(block.scale), rate = weight_rate(args, unit);
  const float keep = block.scale > 0 ? args.keep : 0.0f;
  float t[16];
  QN_PAIRS(p) {
    const float2 value = pair_of(tables.values, block.word, p);
    t[2 * p] = fused(rate, u[2 * p], value.x * keep);
    t[2 * p + 1] = fused(rate, u[2 * p + 1], value.y * keep);
  }
  const float reach = amax_of_block(t);
  const StickyScale next = sticky_scale(block.scale, reach * unit, words.w[kGrowthWord], saturated);
  if (next.code != block.scale || !(reach < 8.0f) || block.scale == 0) {
    float local[16];
    QN_EACH_OF(16) local[i] = t[i];
    block = rescale_weight(args, at, block, next, local);
    return;
  }
  const WeightDraws draws(words);
  QN_EACH_OF(2) block.word[i] = rounded_word<true>(t + 8 * i, draws, 8 * i, block.word[i]);
}

}  // namespace
}  // namespace qn
