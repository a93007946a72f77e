// A block of 16 with NVFP4 moments and NVFP4 weights in the registers of one CUDA thread: the functions of
// ops/adamw_packed.h with codes kept in words, values looked up in shared memory two codes at a time, and what is rare
// (an element far from its v, a block whose scale changes) in functions that are not inlined. Included by adamw.cu.
#pragma once

#include "ops/adamw_blocks_cuda.h"

#define QN_PAIRS(p) _Pragma("unroll") for (int p = 0; p < 8; ++p)

namespace qn {
namespace {

// By the byte of two codes, the low nibble first. Aligned so that an index is joined to an address by one LOP3.
struct PairTables {
  // For each scale of a second moment: 1 / √v in units of the row's centre, twice, and both values. The byte with both
  // signs flipped has √v.
  alignas(4096) float4 second[kOctaves][256];
  alignas(2048) float2 values[256];
  float inverse_scales[128];  // of E4M3 codes
  float inverse_roots[kOctaves][16];
};

// All threads.
__device__ void fill_tables(PairTables& tables) {
  const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  for (int i = me; i < 16 * kOctaves; i += threads) {
    const float S = e4m3_value(octave_code(i / 16));
    tables.inverse_roots[i / 16][i % 16] = inverse_root_of(e2m1_value(static_cast<uint32_t>(i) % 16), S);
  }
  for (int i = me; i < 127; i += threads) tables.inverse_scales[i] = inverse_scale(static_cast<uint32_t>(i));
  for (int i = me; i < 256; i += threads) {
    const auto byte = static_cast<uint32_t>(i);
    tables.values[i] = make_float2(e2m1_value(byte & 15u), e2m1_value(byte >> 4));
  }
  __syncthreads();
  for (int i = me; i < 256 * kOctaves; i += threads) {
    const float* roots = tables.inverse_roots[i / 256];
    const float2 values = tables.values[i % 256];
    tables.second[i / 256][i % 256] = make_float4(roots[i % 16], roots[i / 16 % 16], values.x, values.y);
  }
  __syncthreads();
}

// Entry `byte p of two words` of a table of 8- or 16-byte entries.
template <typename Entry>
__device__ __forceinline__ Entry pair_of(const Entry* table, const uint32_t* words, int p) {
  constexpr int kShift = sizeof(Entry) == 16 ? 4 : 3;
  const uint32_t word = words[p / 4];
  const uint32_t offset = (p % 4 == 0 ? word << kShift : word >> (8 * (p % 4) - kShift)) & (0xffu << kShift);
#if defined(__CUDA_ARCH__)
  const uint32_t address = offset | static_cast<uint32_t>(__cvta_generic_to_shared(table));
  Entry entry;
  if constexpr (sizeof(Entry) == 16) {
    asm("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(entry.x), "=f"(entry.y), "=f"(entry.z), "=f"(entry.w)
        : "r"(address));
  } else {
    asm("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(entry.x), "=f"(entry.y) : "r"(address));
  }
  return entry;
#else
  return table[offset >> kShift];
#endif
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

// The codes of |t[8]| < 8, rounded with draws first … first + 7, a nibble each: 0 … 8.
template <typename Draws>
__device__ __forceinline__ uint32_t rounded_magnitudes(const float* t, const Draws& draws, int first) {
  uint32_t sum[8];
  QN_EACH_OF(8) sum[i] = e2m1_position(magnitude_of(t[i])) * 4 + draws(first + i);
  return top_bytes(sum[0], sum[2], sum[4], sum[6]) + (top_bytes(sum[1], sum[3], sum[5], sum[7]) << 4);
}
__device__ __forceinline__ uint32_t cut_at_seven(uint32_t magnitudes) {
  return magnitudes - ((magnitudes >> 3) & 0x11111111u);
}
// In bit 3 of each nibble: the signs of t[8].
__device__ __forceinline__ uint32_t signs_of(const float* t) {
  const uint32_t even = top_bytes(bits_of(t[0]), bits_of(t[2]), bits_of(t[4]), bits_of(t[6])),
                 odd = top_bytes(bits_of(t[1]), bits_of(t[3]), bits_of(t[5]), bits_of(t[7]));
  return (odd & 0x80808080u) | ((even >> 4) & 0x08080808u);
}
// Magnitudes up to 7 with their signs; a zero has the sign of its old code.
__device__ __forceinline__ uint32_t with_signs(uint32_t magnitudes, uint32_t signs, uint32_t old) {
  const uint32_t nonzero = magnitudes + 0x77777777u;  // in bit 3 of each nibble
  return magnitudes | (((signs & nonzero) | (old & ~nonzero)) & 0x88888888u);
}

// --- What is rare ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t rescale_second(float moved, int first, Nvfp4Block block, float* t) {
  uint32_t codes[16];
  unpack_codes(codes, block);
  rescale_octaves<MomentFormat::kNvfp4>(moved, first, codes, block.scale, t);
  return block.scale;
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
  const float S = e4m3_value(v_block.scale), inverse = float_of(0x7f000000u - bits_of(S));
  const float kept = row.keep_m * (e4m3_value(m_block.scale) * row.level);
  const int k = octave_index(v_block.scale);
  const float4* second = tables.second[k];
  const Nvfp4Block before = v_block;
  float m[16], t[16], off[16], codes = 0;
  bool far = false;
  QN_PAIRS(p) {
    const float4 v = pair_of(second, v_block.word, p);
    const float2 old_m = pair_of(tables.values, m_block.word, p);
    const NearElement a = near_element(row, g[2 * p], v.x, old_m.x * kept);
    const NearElement b = near_element(row, g[2 * p + 1], v.y, old_m.y * kept);
    m[2 * p] = a.m;
    m[2 * p + 1] = b.m;
    t[2 * p] = fused(a.log2, inverse, v.z);
    t[2 * p + 1] = fused(b.log2, inverse, v.w);
    off[2 * p] = a.off;
    off[2 * p + 1] = b.off;
    far |= !(magnitude_of(a.off) <= row.near_limit) | !(magnitude_of(b.off) <= row.near_limit);
    codes += v.z + v.w;
  }
  QN_EACH_OF(16) u[i] = near_update(m[i], off[i]);
  if (far) {
    QN_EACH_OF(16) {
      if (magnitude_of(off[i]) <= row.near_limit) continue;
      const float4 v = pair_of(second, v_block.word, i / 2);
      const float2 old_m = pair_of(tables.values, m_block.word, i / 2);
      const FarElement e = far_element(row, g[i], i % 2 ? v.y : v.x, (i % 2 ? old_m.y : old_m.x) * kept);
      m[i] = e.m;
      u[i] = e.u;
      t[i] = fused(e.log2, inverse, i % 2 ? v.w : v.z);
    }
  }
  // Near, u is at most 1 / (1 − kNearLimit) of m.
  float amax = amax_of_block(m);
  if (far || amax > kUpdateClip * (1 - kNearLimit)) {
    QN_EACH_OF(16) u[i] = clipped_update(u[i]);
  }
  // Where the stored v lie: below the floor are only codes of scales from 2 on.
  if (S <= 1.0f) {
    sum.eighths += static_cast<int32_t>(codes * S * 8.0f);
    sum.live += 16;
  } else {
    uint32_t old[16];
    unpack_codes(old, v_block);
    add_block<MomentFormat::kNvfp4>(sum, old, S);
    if (row.moved == 0) {
      QN_EACH_OF(16) t[i] = larger(t[i], -kOctavesBelowCentre * inverse);
    }
  }

  // v.
  const SecondDraws random_v(words);
  uint32_t magnitudes[2];
  QN_EACH_OF(2) magnitudes[i] = rounded_magnitudes(t + 8 * i, random_v, 8 * i);
  const float reach = amax_of_block(t);
  const bool shrinks = reach <= 3.0f && k > 0;
  bool moves = false;
  if (row.moved != 0 || shrinks || !(reach < 8.0f) || ((magnitudes[0] | magnitudes[1]) & 0x88888888u) != 0) {
    float local[16];
    QN_EACH_OF(16) local[i] = t[i];
    const int first = row.moved == 0 && !shrinks ? octave_above(k) : octave_below(k);
    v_block.scale = static_cast<uint8_t>(rescale_second(row.moved, first, v_block, local));
    QN_EACH_OF(16) t[i] = local[i];
    QN_EACH_OF(2) magnitudes[i] = rounded_magnitudes(t + 8 * i, random_v, 8 * i);
    moves = row.moved != 0 || v_block.scale != before.scale;
  }
  QN_EACH_OF(2) v_block.word[i] = with_signs(magnitudes[i], signs_of(t + 8 * i), before.word[i]);

  // m in units of the v that is stored now; few codes change in a step.
  const float4* next = tables.second[octave_index(v_block.scale)];
  const uint32_t old_negated[2] = {before.word[0] ^ 0x88888888u, before.word[1] ^ 0x88888888u};
  if (moves) amax = 0;
  QN_PAIRS(p) {
    const uint32_t differs = moves ? 0xffu : ((v_block.word[p / 4] ^ before.word[p / 4]) >> (8 * (p % 4))) & 0xffu;
    if (differs != 0) {
      const float4 root = pair_of(second, old_negated, p), inverse_root = pair_of(next, v_block.word, p);
      if ((differs & 0x0fu) != 0) m[2 * p] = m[2 * p] * root.x * row.root_move * inverse_root.x;
      if ((differs & 0xf0u) != 0) m[2 * p + 1] = m[2 * p + 1] * root.y * row.root_move * inverse_root.y;
      amax = larger(amax, larger(magnitude_of(m[2 * p]), magnitude_of(m[2 * p + 1])));
    }
  }
  const uint32_t scale = moment_scale<MomentFormat::kNvfp4>(amax);
  const float inverse_m = inverse_within(tables.inverse_scales[scale] * (1 / kMomentLevel), amax, 6.0f);
  const FirstDraws random_m(words);
  QN_EACH_OF(16) m[i] *= inverse_m;
  if (amax * inverse_m >= 8.0f) {
    QN_EACH_OF(16) m[i] = smaller(larger(m[i], -6.0f), 6.0f);
  }
  QN_EACH_OF(2) {
    m_block.word[i] = cut_at_seven(rounded_magnitudes(m + 8 * i, random_m, 8 * i)) | signs_of(m + 8 * i);
  }
  m_block.scale = static_cast<uint8_t>(scale);
}

__device__ __forceinline__ void load_values(float* x, const PairTables& tables, const Nvfp4Block& block) {
  QN_PAIRS(p) {
    const float2 value = pair_of(tables.values, block.word, p);
    x[2 * p] = value.x;
    x[2 * p + 1] = value.y;
  }
}
// Whether a block whose scale is not 0 moves at all: t f32[16] is where it goes.
__device__ __forceinline__ bool moved_from(const PairTables& tables, const Nvfp4Block& block, const float* t) {
  float base[16];
  load_values(base, tables, block);
  bool moved = false;
  QN_EACH_OF(16) moved |= t[i] != base[i];
  return moved;
}

// t f32[16], which reaches `reach`, to the next scale, and below the codes' 8.
__device__ __forceinline__ void rescale_words(const PairTables& tables, Nvfp4Block& block, const StickyScale& next,
                                              float* t, float reach) {
  if (next.code != block.scale) {
    const Rescale rescale = rescale_of(block.scale, next, tables.inverse_scales[next.code]);
    block.scale = static_cast<uint8_t>(next.code);
    QN_EACH_OF(16) t[i] = copysignf(rescaled(magnitude_of(t[i]), rescale), t[i]);
  }
  if (!(reach < 8.0f)) {
    QN_EACH_OF(16) t[i] = smaller(larger(t[i], -6.0f), 6.0f);
  }
}
// weight_code() of t f32[16].
template <typename Draws>
__device__ __forceinline__ void store_words(Nvfp4Block& block, const float* t, const Draws& draws) {
  QN_EACH_OF(2) {
    block.word[i] =
        with_signs(cut_at_seven(rounded_magnitudes(t + 8 * i, draws, 8 * i)), signs_of(t + 8 * i), block.word[i]);
  }
}
struct NearestDraws {
  __device__ uint32_t operator()(int) const { return kNearest; }
};

// step_weights() of ops/adamw_packed.h.
__device__ __forceinline__ void step_weight_words(const AdamwArgs& args, const PairTables& tables, Nvfp4Block& block,
                                                  const float* u, const BlockWords& words, int32_t& saturated) {
  const float rate = -(args.rate * tables.inverse_scales[block.scale]);
  float t[16];
  load_values(t, tables, block);
  if (args.keep != 1.0f || block.scale == 0) {
    const float keep = block.scale > 0 ? args.keep : 0.0f;
    QN_EACH_OF(16) t[i] *= keep;
  }
  QN_EACH_OF(16) t[i] = fused(rate, u[i], t[i]);
  const float reach = amax_of_block(t);
  const StickyScale next = sticky_scale(block.scale, reach * weight_unit(block.scale), words.w[kGrowthWord], saturated);
  if (next.code == 0 || (next.code < block.scale && !moved_from(tables, block, t))) return;
  rescale_words(tables, block, next, t, reach);
  store_words(block, t, WeightDraws(words));
}

// step_residual_weights() of ops/adamw_packed.h.
__device__ __forceinline__ void step_residual_words(const AdamwArgs& args, const PairTables& tables, int64_t at,
                                                    Nvfp4Block& block, const float* u, const BlockWords& words,
                                                    int32_t& saturated) {
  Nvfp4Block residual = load_packed<MomentFormat::kNvfp4>(args.residual_codes, args.residual_scales, at);
  const float inverse = tables.inverse_scales[block.scale], rate = -(args.rate * inverse);
  const float rest = e4m3_value(residual.scale) * kResidualUnit * inverse;
  float t[16], base[16];
  load_values(base, tables, block);
  load_values(t, tables, residual);
  if (block.scale == 0) {
    QN_EACH_OF(16) base[i] = 0;
  }
  bool moved = false;
  QN_EACH_OF(16) {
    base[i] = fused(t[i], rest, base[i]);
    t[i] = fused(rate, u[i], base[i] * args.keep);
    moved |= t[i] != base[i];
  }
  if (!moved) return;
  StickyScale next =
      sticky_scale(block.scale, amax_of_block(t) * weight_unit(block.scale), words.w[kGrowthWord], saturated);
  next.boost = 0;
  if (next.code != block.scale) {
    const Rescale rescale = rescale_of(block.scale, next, tables.inverse_scales[next.code]);
    block.scale = static_cast<uint8_t>(next.code);
    QN_EACH_OF(16) t[i] = copysignf(rescaled(magnitude_of(t[i]), rescale), t[i]);
  }
  QN_EACH_OF(16) base[i] = 0;
  if (block.scale > 0) {
    float cut[16];
    QN_EACH_OF(16) cut[i] = smaller(larger(t[i], -6.0f), 6.0f);
    store_words(block, cut, NearestDraws());
    load_values(base, tables, block);
  }
  const float to_rest = weight_unit(block.scale) * (1 / kResidualUnit) * tables.inverse_scales[residual.scale];
  QN_EACH_OF(16) t[i] = (t[i] - base[i]) * to_rest;
  const float reach = amax_of_block(t);
  next = sticky_scale(residual.scale, reach * weight_unit(residual.scale), words.w[kResidualGrowthWord], saturated);
  if (next.code == 0) return;
  rescale_words(tables, residual, next, t, reach);
  store_words(residual, t, WeightDraws(words));
  store_packed(args.residual_codes, args.residual_scales, at, residual);
}

}  // namespace
}  // namespace qn
