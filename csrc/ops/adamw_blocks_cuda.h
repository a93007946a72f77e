// Blocks of 16 columns in the registers of one CUDA thread, and what one AdamW step does to them: the device half of
// ops/adamw_elements.h and, in plain form, of ops/adamw_packed.h. Included after <cuda_runtime.h>. Loops
// over a block are unrolled, so that every index into an array is a constant and the arrays stay in registers.
#pragma once

#include "ops/adamw_packed.h"

#define QN_EACH_OF(count) _Pragma("unroll") for (int i = 0; i < (count); ++i)

namespace qn {
namespace {

using namespace adamw;

// --- Memory ---------------------------------------------------------------------------------------------------------

// x[16] from 16-byte aligned f32, in 16-byte loads; and back.
__device__ __forceinline__ void load_f32(float* x, const float* from) {
  QN_EACH_OF(4) {
    const float4 quad = reinterpret_cast<const float4*>(from)[i];
    x[4 * i] = quad.x;
    x[4 * i + 1] = quad.y;
    x[4 * i + 2] = quad.z;
    x[4 * i + 3] = quad.w;
  }
}
__device__ __forceinline__ void store_f32(float* to, const float* x) {
  QN_EACH_OF(4) { reinterpret_cast<float4*>(to)[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]); }
}

// The same for 16 halves, each in the low bits of a word.
__device__ __forceinline__ void load_u16(uint32_t* bits, const uint16_t* from) {
  QN_EACH_OF(2) {
    const uint4 eight = reinterpret_cast<const uint4*>(from)[i];
    const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
    _Pragma("unroll") for (int k = 0; k < 4; ++k) {
      bits[8 * i + 2 * k] = pairs[k] & 0xffffu;
      bits[8 * i + 2 * k + 1] = pairs[k] >> 16;
    }
  }
}
__device__ __forceinline__ void store_u16(uint16_t* to, const uint32_t* bits) {
  uint32_t pairs[8];
  QN_EACH_OF(8) pairs[i] = bits[2 * i] | (bits[2 * i + 1] << 16);
  QN_EACH_OF(2) {
    reinterpret_cast<uint4*>(to)[i] = make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
  }
}
__device__ __forceinline__ void load_bf16(float* x, const uint16_t* from) {
  uint32_t bits[16];
  load_u16(bits, from);
  QN_EACH_OF(16) x[i] = float_of(bits[i] << 16);
}

// g of the block that begins `offset` elements after the first row of the call.
__device__ __forceinline__ void load_gradient(float* g, const AdamwArgs& args, int64_t offset) {
  if (args.g_bf16 != nullptr) {
    load_bf16(g, args.g_bf16 + offset);
  } else {
    load_f32(g, args.g + offset);
  }
}

// 16 codes of 4 (nvfp4) or 8 (int8) bits and their scale.
template <MomentFormat kFormat>
struct PackedBlock {
  static constexpr bool kNibbles = kFormat == MomentFormat::kNvfp4;
  static constexpr int kWords = kNibbles ? 2 : 4;
  uint32_t word[kWords];
  uint8_t scale;

  __device__ __forceinline__ uint32_t code(int i) const { return (word[i / 8] >> (4 * (i % 8))) & 15u; }
  __device__ __forceinline__ float value(int i) const {
    if constexpr (kNibbles) return e2m1_value(code(i));
    return static_cast<float>(static_cast<int32_t>(static_cast<int8_t>(word[i / 4 % kWords] >> (8 * (i % 4)))));
  }
  // `bits` of a code into a zeroed place.
  __device__ __forceinline__ void put(int i, uint32_t bits) {
    if constexpr (kNibbles) {
      word[i / 8] |= bits << (4 * (i % 8));
    } else {
      word[i / 4 % kWords] |= (bits & 0xffu) << (8 * (i % 4));
    }
  }
};
using Nvfp4Block = PackedBlock<MomentFormat::kNvfp4>;

// The block whose first element is `at`.
template <MomentFormat kFormat>
__device__ __forceinline__ PackedBlock<kFormat> load_packed(const void* values, const uint8_t* scales, int64_t at) {
  PackedBlock<kFormat> block;
  if constexpr (PackedBlock<kFormat>::kNibbles) {
    const uint2 codes = static_cast<const uint2*>(values)[at / 16];
    block.word[0] = codes.x;
    block.word[1] = codes.y;
  } else {
    const uint4 codes = static_cast<const uint4*>(values)[at / 16];
    block.word[0] = codes.x;
    block.word[1] = codes.y;
    block.word[2] = codes.z;
    block.word[3] = codes.w;
  }
  block.scale = scales[at / 16];
  return block;
}
template <MomentFormat kFormat>
__device__ __forceinline__ void store_packed(void* values, uint8_t* scales, int64_t at,
                                             const PackedBlock<kFormat>& block) {
  if constexpr (PackedBlock<kFormat>::kNibbles) {
    static_cast<uint2*>(values)[at / 16] = make_uint2(block.word[0], block.word[1]);
  } else {
    static_cast<uint4*>(values)[at / 16] = make_uint4(block.word[0], block.word[1], block.word[2], block.word[3]);
  }
  scales[at / 16] = block.scale;
}

// The words of elements [at, at + 4); at % 4 == 0.
__device__ __forceinline__ PhiloxWords quad_words(const AdamwArgs& args, int64_t at, RandomStream stream) {
  return random_words(args.seed, at >> 2, args.parameter, args.step, stream);
}

// --- Moments --------------------------------------------------------------------------------------------------------

// Plain moments (bf16, fp32) of one block.
__device__ __forceinline__ void load_plain(float* x, MomentFormat format, const void* values, int64_t at) {
  if (format == MomentFormat::kFp32) {
    load_f32(x, static_cast<const float*>(values) + at);
  } else {
    load_bf16(x, static_cast<const uint16_t*>(values) + at);
  }
}
__device__ __forceinline__ void stochastic_bf16_block(uint32_t* bits, const AdamwArgs& args, int64_t at, const float* x,
                                                      RandomStream stream) {
  _Pragma("unroll") for (int quad = 0; quad < 4; ++quad) {
    const PhiloxWords words = quad_words(args, at + 4 * quad, stream);
    QN_EACH_OF(4) bits[4 * quad + i] = stochastic_bf16(x[4 * quad + i], words.w[i]);
  }
}
__device__ __forceinline__ void store_plain(const AdamwArgs& args, void* values, int64_t at, const float* x,
                                            RandomStream stream) {
  if (args.moments == MomentFormat::kFp32) return store_f32(static_cast<float*>(values) + at, x);
  uint32_t bits[16];
  stochastic_bf16_block(bits, args, at, x, stream);
  store_u16(static_cast<uint16_t*>(values) + at, bits);
}

// The word of one element; four threads draw the same quad.
__device__ __forceinline__ uint32_t element_word(const AdamwArgs& args, int64_t element, RandomStream stream) {
  const PhiloxWords words = quad_words(args, element, stream);
  const int64_t at = element & 3;
  return at < 2 ? (at == 0 ? words.w[0] : words.w[1]) : (at == 2 ? words.w[2] : words.w[3]);
}

// The moments of one element; returns u.
__device__ __forceinline__ float step_plain_element(const AdamwArgs& args, const MomentRates& rates, int64_t element,
                                                    float g) {
  if (args.moments == MomentFormat::kFp32) {
    float *m = static_cast<float*>(args.m.values) + element, *v = static_cast<float*>(args.v.values) + element;
    float new_m = *m, new_v = *v;
    const float u = step_moments(new_m, new_v, g, rates);
    *m = new_m;
    *v = new_v;
    return u;
  }
  uint16_t *m = static_cast<uint16_t*>(args.m.values) + element, *v = static_cast<uint16_t*>(args.v.values) + element;
  float new_m = bf16_value(*m), new_v = bf16_value(*v);
  const float u = step_moments(new_m, new_v, g, rates);
  *m = stochastic_bf16(new_m, element_word(args, element, RandomStream::kFirstMoment));
  *v = stochastic_bf16(new_v, element_word(args, element, RandomStream::kSecondMoment));
  return u;
}

// --- Weights --------------------------------------------------------------------------------------------------------

// What one row did, of one thread's blocks.
struct RowTotals {
  double update_squares = 0;
  int changed_codes = 0, saturated = 0;
};

template <MomentFormat kFormat>
__device__ __forceinline__ void unpack_codes(uint32_t* codes, const PackedBlock<kFormat>& block) {
  QN_EACH_OF(16) {
    if constexpr (PackedBlock<kFormat>::kNibbles) {
      codes[i] = block.code(i);
    } else {
      codes[i] = static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(block.word[i / 4] >> (8 * (i % 4)))));
    }
  }
}
template <MomentFormat kFormat>
__device__ __forceinline__ PackedBlock<kFormat> packed_block(const uint32_t* codes, uint8_t scale) {
  PackedBlock<kFormat> block{};
  block.scale = scale;
  QN_EACH_OF(16) block.put(i, codes[i]);
  return block;
}

__device__ __forceinline__ int count_changes(const Nvfp4Block& a, const Nvfp4Block& b) {
  const uint32_t first = a.word[0] ^ b.word[0], second = a.word[1] ^ b.word[1];
  // Both bits of a pair that say whether any of a nibble's four differs, of the words in turns.
  const uint32_t pairs = ((first | first >> 2) & 0x33333333u) | ((second | second << 2) & 0xccccccccu);
  return __popc((pairs | pairs >> 1) & 0x55555555u);
}

// The words of a block's elements, and its draws for the weight.
struct BlockWords {
  uint32_t w[16];
};
// Arguments and what every thread would make of them; the compiler leaves it where kernels find their parameters.
struct PackedArgs : AdamwArgs {
  PhiloxKeys<7> keys;
};
// Words 4 · quad … 4 · quad + 3 of the block that begins at element `at`.
__device__ __forceinline__ void draw_words(BlockWords& words, const AdamwArgs& args, const PhiloxKeys<7>& keys,
                                           int64_t at, int quad) {
  const PhiloxWords four =
      packed_words(keys, args.parameter, args.step, static_cast<uint64_t>(at >> 2) + static_cast<uint64_t>(quad));
  _Pragma("unroll") for (int k = 0; k < 4; ++k) words.w[4 * quad + k] = four.w[k];
}
__device__ __forceinline__ BlockWords block_words(const AdamwArgs& args, int64_t at) {
  BlockWords words;
  const auto keys = philox_keys<7>(args.seed);
  _Pragma("unroll") for (int quad = 0; quad < 4; ++quad) draw_words(words, args, keys, at, quad);
  return words;
}
__device__ __forceinline__ void weight_draws(uint32_t* draws, const BlockWords& words) {
  QN_EACH_OF(16) draws[i] = weight_draw(words.w[i]);
}
__device__ __forceinline__ uint32_t growth_of(const BlockWords& words, int element) {
  return growth_word(words.w[element], words.w[element + 1]);
}

// The 16 values that the update starts from, in units of the global scale.
__device__ __forceinline__ void load_base(float* base, const AdamwArgs& args, WeightMode mode, int64_t at,
                                          const Nvfp4Block& codes, const Nvfp4Block& residual) {
  if (mode == WeightMode::kFp32) return load_f32(base, static_cast<const float*>(args.master) + at);
  if (mode == WeightMode::kBf16) return load_bf16(base, static_cast<const uint16_t*>(args.master) + at);
  const float S = e4m3_value(codes.scale), rest = e4m3_value(residual.scale) * kResidualUnit;
  QN_EACH_OF(16) base[i] = codes.value(i) * S + residual.value(i) * rest;
}

// x becomes what a bf16 master holds.
__device__ __forceinline__ void store_master(const AdamwArgs& args, WeightMode mode, int64_t at, float* x,
                                             const uint32_t* draws) {
  if (mode == WeightMode::kFp32) {
    store_f32(static_cast<float*>(args.master) + at, x);
  } else if (mode == WeightMode::kBf16) {
    uint32_t bits[16];
    QN_EACH_OF(16) {
      bits[i] = stochastic_bf16(x[i], draws[i] << 8);
      x[i] = float_of(bits[i] << 16);
    }
    store_u16(static_cast<uint16_t*>(args.master) + at, bits);
  }
}

// Codes that are the nearest of a master, or of what codes and residual together hold. `mode` is a constant where the
// kernel has a path of its own for it.
__device__ __forceinline__ void step_nearest_block(const AdamwArgs& args, WeightMode mode, int64_t at,
                                                   Nvfp4Block& block, const float* u, const BlockWords& words,
                                                   int32_t& saturated) {
  Nvfp4Block residual{};
  if (mode == WeightMode::kNvfp4Residual) {
    residual = load_packed<MomentFormat::kNvfp4>(args.residual_codes, args.residual_scales, at);
  }
  float base[16], x[16];
  uint32_t draws[16], codes[16];
  weight_draws(draws, words);
  load_base(base, args, mode, at, block, residual);
  QN_EACH_OF(16) x[i] = base[i] * args.keep - args.rate * u[i];
  store_master(args, mode, at, x, draws);
  bool moved = false;
  QN_EACH_OF(16) moved |= x[i] != base[i];
  if (!moved) return;
  unpack_codes(codes, block);
  sticky_block<false>(codes, block.scale, x, nullptr, growth_of(words, kGrowthElement), saturated);
  block = packed_block<MomentFormat::kNvfp4>(codes, block.scale);
  if (mode != WeightMode::kNvfp4Residual) return;
  const float S = e4m3_value(block.scale);
  QN_EACH_OF(16) x[i] = (x[i] - block.value(i) * S) * (1 / kResidualUnit);
  unpack_codes(codes, residual);
  sticky_block<true>(codes, residual.scale, x, draws, growth_of(words, kResidualGrowthElement), saturated);
  store_packed(args.residual_codes, args.residual_scales, at,
               packed_block<MomentFormat::kNvfp4>(codes, residual.scale));
}

// step_weights() of ops/adamw_packed.h.
__device__ __forceinline__ void step_weight_block(const AdamwArgs& args, Nvfp4Block& block, const float* u,
                                                  const BlockWords& words, int32_t& saturated) {
  uint32_t draws[16], codes[16];
  weight_draws(draws, words);
  unpack_codes(codes, block);
  step_weights(args, codes, block.scale, u, draws, growth_of(words, kGrowthElement), saturated);
  block = packed_block<MomentFormat::kNvfp4>(codes, block.scale);
}

// A weight in NVFP4 of any mode.
__device__ __forceinline__ void step_nvfp4_weight(const AdamwArgs& args, int64_t at, Nvfp4Block codes, const float* u,
                                                  const BlockWords& words, RowTotals& totals) {
  const Nvfp4Block before = codes;
  if (args.mode == WeightMode::kNvfp4) {
    step_weight_block(args, codes, u, words, totals.saturated);
  } else {
    step_nearest_block(args, args.mode, at, codes, u, words, totals.saturated);
  }
  store_packed(args.codes, args.scales, at, codes);
  totals.changed_codes += count_changes(codes, before);
}
// One element of a dense weight; `word` is read for 16-bit weights.
__device__ __forceinline__ void step_dense_element(const AdamwArgs& args, int64_t element, float u, uint32_t word) {
  if (args.storage == Storage::kF32) {
    float* x = static_cast<float*>(args.dense) + element;
    *x = stepped(*x, args.keep, args.rate, u);
    return;
  }
  uint16_t* x = static_cast<uint16_t*>(args.dense) + element;
  *x = args.storage == Storage::kBF16 ? stochastic_bf16(stepped(bf16_value(*x), args.keep, args.rate, u), word)
                                      : stochastic_f16(stepped(f16_value(*x), args.keep, args.rate, u), word);
}
__device__ __forceinline__ void step_dense_block(const AdamwArgs& args, int64_t at, const float* u) {
  _Pragma("unroll") for (int quad = 0; quad < 4; ++quad) {
    PhiloxWords words{};
    if (args.storage != Storage::kF32) words = quad_words(args, at + 4 * quad, RandomStream::kWeight);
    QN_EACH_OF(4) step_dense_element(args, at + 4 * quad + i, u[4 * quad + i], words.w[i]);
  }
}

}  // namespace
}  // namespace qn
