// NEON matrix-vector products: the weight is read once, as stored, and every code meets f32 activations.
//
// NVFP4: the low nibbles of 16 code bytes are the even columns of two blocks, the high nibbles the odd ones. x is put
// in that order beforehand. The sixteen products of a block share a scale, which is applied once to their four lane
// sums.
#include "ops/gemv_neon.h"

namespace qn {

namespace {

// Bytes of codes to ask for in advance. A guess: not tuned on any processor. Past the end it is ignored.
constexpr int64_t kAhead = 1024;

// The sixteen columns of one block against x: even columns 0 .. 7, 8 .. 15, then odd ones.
inline float32x4_t block_product(const float32x4_t even[2], const float32x4_t odd[2], const float* x) {
  float32x4_t sum = vmulq_f32(even[0], vld1q_f32(x));
  sum = vfmaq_f32(sum, even[1], vld1q_f32(x + 4));
  sum = vfmaq_f32(sum, odd[0], vld1q_f32(x + 8));
  return vfmaq_f32(sum, odd[1], vld1q_f32(x + 12));
}

// sum[t] += the products of two blocks, 32 columns, whose scales are lanes kLane and kLane + 1 of `scales`.
template <int kTokens, int kLane>
inline void add_blocks(float32x4_t sum[kTokens], uint8x16_t codes, float32x4_t scales, const float* x, int64_t stride) {
  float32x4_t even0[2], even1[2], odd0[2], odd1[2];
  e2m1_values(even0, even1, vandq_u8(codes, vdupq_n_u8(15)));
  e2m1_values(odd0, odd1, vshrq_n_u8(codes, 4));
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const float* columns = x + t * stride;
    sum[t] = vfmaq_laneq_f32(sum[t], block_product(even0, odd0, columns), scales, kLane);
    sum[t] = vfmaq_laneq_f32(sum[t], block_product(even1, odd1, columns + 16), scales, kLane + 1);
  }
}

// The last one to three blocks of a row.
template <int kTokens>
inline void add_rest(float32x4_t sum[kTokens], const uint8_t* codes, const uint8_t* scales, const float* x,
                     int64_t stride, int64_t blocks) {
  if (blocks >= 2) add_blocks<kTokens, 0>(sum, vld1q_u8(codes), small_scales(scales, 2), x, stride);
  if (blocks % 2 == 0) return;
  const int64_t last = blocks - 1;
  const uint8x16_t half = vcombine_u8(vld1_u8(codes + 8 * last), vdup_n_u8(0));
  float32x4_t even[2], odd[2], unused[2];
  e2m1_values(even, unused, vandq_u8(half, vdupq_n_u8(15)));
  e2m1_values(odd, unused, vshrq_n_u8(half, 4));
  const float32x4_t scale = small_scales(scales + last, 1);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    sum[t] = vfmaq_laneq_f32(sum[t], block_product(even, odd, x + t * stride + 16 * last), scale, 0);
  }
}

template <int kTokens>
void nvfp4_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  const int64_t full = args.K / 64, rest = args.K % 64;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = static_cast<const uint8_t*>(args.weight) + n * (args.K / 2);
    const uint8_t* scales = static_cast<const uint8_t*>(args.scales) + n * (args.K / 16);
    const float* x = args.x;
    float32x4_t sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[t] = vdupq_n_f32(0);
    for (int64_t chunk = 0; chunk < full; ++chunk, codes += 32, scales += 4, x += 64) {
      __builtin_prefetch(codes + kAhead);
      const float32x4_t four = small_scales(scales, 4);
      add_blocks<kTokens, 0>(sum, vld1q_u8(codes), four, x, args.x_stride);
      add_blocks<kTokens, 2>(sum, vld1q_u8(codes + 16), four, x + 32, args.x_stride);
    }
    if (rest > 0) add_rest<kTokens>(sum, codes, scales, x, args.x_stride, rest / 16);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = vaddvq_f32(sum[t]) * kE4M3AsF16 * args.global_scale;
      y = args.accumulate ? y + value : value;
    }
  }
}

// A block of bitsandbytes codes, 64 columns, is two registers of codes; its scale is applied to half of them at once.
template <int kTokens>
void bnb4_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  const uint8x16x4_t table = bnb4_table(args.values);
  const int64_t halves = args.K / 32;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = static_cast<const uint8_t*>(args.weight) + n * (args.K / 2);
    const float* absmax = static_cast<const float*>(args.scales) + n * (args.K / 64);
    float32x4_t sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[t] = vdupq_n_f32(0);
    for (int64_t half = 0; half < halves; ++half, codes += 16) {
      __builtin_prefetch(codes + kAhead);
      const uint8x16_t pairs = vld1q_u8(codes);
      float32x4_t even0[2], even1[2], odd0[2], odd1[2];
      bnb4_values(even0, even1, table, vandq_u8(pairs, vdupq_n_u8(15)));
      bnb4_values(odd0, odd1, table, vshrq_n_u8(pairs, 4));
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const float* x = args.x + t * args.x_stride + 32 * half;
        const float32x4_t product = vaddq_f32(block_product(even0, odd0, x), block_product(even1, odd1, x + 16));
        sum[t] = vfmaq_n_f32(sum[t], product, absmax[half / 2]);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = vaddvq_f32(sum[t]);
      y = args.accumulate ? y + value : value;
    }
  }
}

struct F32 {
  using Element = float;
  static float32x4_t load(const float* p, int64_t lanes) { return load_f32(p, lanes); }
};
struct F16 {
  using Element = uint16_t;
  static float32x4_t load(const uint16_t* p, int64_t lanes) { return widen_f16(load_halves(p, lanes)); }
};
struct BF16 {
  using Element = uint16_t;
  static float32x4_t load(const uint16_t* p, int64_t lanes) { return widen_bf16(load_halves(p, lanes)); }
};

template <typename Type, int kTokens>
void dense_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const auto* row = static_cast<const typename Type::Element*>(args.weight) + n * args.K;
    float32x4_t sum[kTokens][4];  // four chains hide the latency of the additions
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = vdupq_n_f32(0);
    int64_t k = 0;
    for (; k + 16 <= args.K; k += 16) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const float32x4_t w = Type::load(row + k + 4 * j, 4);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          sum[t][j] = vfmaq_f32(sum[t][j], w, vld1q_f32(args.x + t * args.x_stride + k + 4 * j));
        }
      }
    }
    for (; k < args.K; k += 4) {
      const float32x4_t w = Type::load(row + k, args.K - k);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sum[t][0] = vfmaq_f32(sum[t][0], w, load_f32(args.x + t * args.x_stride + k, args.K - k));
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = vaddvq_f32(vaddq_f32(vaddq_f32(sum[t][0], sum[t][1]), vaddq_f32(sum[t][2], sum[t][3])));
      y = args.accumulate ? y + value : value;
    }
  }
}

using Rows = void (*)(const GemvArgs&, int64_t, int64_t);

template <typename Type>
void dense(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensNeon] = {dense_rows<Type, 1>, dense_rows<Type, 2>, dense_rows<Type, 3>,
                                                      dense_rows<Type, 4>};
  kByTokens[args.T - 1](args, begin, end);
}

}  // namespace

void gemv_order_neon(float* ordered, const float* x, int64_t K) {
  for (int64_t block = 0; block < K; block += kGemvChunkNeon) {
    for (int64_t i = 0; i < 8; ++i) {
      ordered[block + i] = x[block + 2 * i];
      ordered[block + 8 + i] = x[block + 2 * i + 1];
    }
  }
}

void gemv_nvfp4_neon(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensNeon] = {nvfp4_rows<1>, nvfp4_rows<2>, nvfp4_rows<3>, nvfp4_rows<4>};
  kByTokens[args.T - 1](args, begin, end);
}

void gemv_bnb4_neon(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensNeon] = {bnb4_rows<1>, bnb4_rows<2>, bnb4_rows<3>, bnb4_rows<4>};
  kByTokens[args.T - 1](args, begin, end);
}

void gemv_f32_neon(const GemvArgs& args, int64_t begin, int64_t end) { dense<F32>(args, begin, end); }
void gemv_f16_neon(const GemvArgs& args, int64_t begin, int64_t end) { dense<F16>(args, begin, end); }
void gemv_bf16_neon(const GemvArgs& args, int64_t begin, int64_t end) { dense<BF16>(args, begin, end); }

}  // namespace qn
