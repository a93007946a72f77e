// AVX2 matrix-vector products: the weight is read once, as stored, and every code meets f32 activations.
//
// NVFP4: a register holds 32 code bytes, so dword i has columns 8i .. 8i+7 of 64 and nibble j of every dword is one
// lookup away from 8 f32 values, columns {8i + j}. x is put in that order beforehand. Dword i lies in block i / 2: its
// eight products share a scale, which is applied once. Of bitsandbytes codes the 64 columns are one block.
#include "ops/gemv_avx2.h"

namespace qn {

namespace {

// Bytes of codes to ask for in advance: the hardware's own prefetch stops at each 4 KiB page. Past the end it is
// ignored.
constexpr int64_t kAhead = 2048;

// Four scales, each for two lanes, 2^8 too small.
__m256 lane_scales(uint32_t scales) {
  const __m128i twice = _mm_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1);
  const __m128i halves = _mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(scales)), twice);
  return _mm256_cvtph_ps(_mm_slli_epi16(halves, 7));
}

float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

struct E2M1 {
  __m256 operator()(__m256i right, __m256i left) const { return e2m1_value(right, left); }
};
struct Sixteen {
  __m256 lower, upper;
  __m256 operator()(__m256i right, __m256i left) const { return bnb4_value(lower, upper, right, left); }
};

// sum[t] += the products of 64 columns with token t, whose ordered columns start at x + t · stride.
template <int kTokens, typename Values>
inline void add_chunk(__m256 sum[kTokens], __m256i codes, const Values& values, __m256 scales, const float* x,
                      int64_t stride) {
  __m256 product[kTokens];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m256 code = values(_mm256_srli_epi32(codes, 4 * j), _mm256_slli_epi32(codes, 28 - 4 * j));
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m256 column = _mm256_loadu_ps(x + t * stride + 8 * j);
      product[t] = j == 0 ? _mm256_mul_ps(code, column) : _mm256_fmadd_ps(code, column, product[t]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) sum[t] = _mm256_fmadd_ps(product[t], scales, sum[t]);
}

template <int kTokens>
void nvfp4_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  const int64_t full = args.K / kGemvChunkAvx2, rest = args.K % kGemvChunkAvx2;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = static_cast<const uint8_t*>(args.weight) + n * (args.K / 2);
    const uint8_t* scales = static_cast<const uint8_t*>(args.scales) + n * (args.K / 16);
    const float* x = args.x;
    __m256 sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm256_setzero_ps();
    uint32_t scale_bytes;
    for (int64_t chunk = 0; chunk < full; ++chunk, codes += 32, scales += 4, x += kGemvChunkAvx2) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
      __builtin_memcpy(&scale_bytes, scales, 4);
      const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      add_chunk<kTokens>(sum, words, E2M1{}, lane_scales(scale_bytes), x, args.x_stride);
    }
    if (rest > 0) {
      scale_bytes = 0;
      for (int64_t i = 0; i < rest / 16; ++i) scale_bytes |= static_cast<uint32_t>(scales[i]) << (8 * i);
      const __m256i words = _mm256_maskload_epi32(reinterpret_cast<const int*>(codes), first(rest / 8));
      add_chunk<kTokens>(sum, words, E2M1{}, lane_scales(scale_bytes), x, args.x_stride);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = sum_lanes(sum[t]) * kE4M3AsF16 * args.global_scale;
      y = args.accumulate ? y + value : value;
    }
  }
}

template <int kTokens>
void bnb4_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  const Sixteen values{_mm256_loadu_ps(args.values), _mm256_loadu_ps(args.values + 8)};
  const int64_t chunks = args.K / kGemvChunkAvx2;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = static_cast<const uint8_t*>(args.weight) + n * (args.K / 2);
    const float* absmax = static_cast<const float*>(args.scales) + n * chunks;
    __m256 sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm256_setzero_ps();
    for (int64_t chunk = 0; chunk < chunks; ++chunk, codes += 32) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
      const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      add_chunk<kTokens>(sum, words, values, _mm256_set1_ps(absmax[chunk]), args.x + chunk * kGemvChunkAvx2,
                         args.x_stride);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = sum_lanes(sum[t]);
      y = args.accumulate ? y + value : value;
    }
  }
}

struct F32 {
  using Element = float;
  static __m256 load(const float* p, int64_t lanes) { return load_f32(p, lanes); }
};
struct F16 {
  using Element = uint16_t;
  static __m256 load(const uint16_t* p, int64_t lanes) { return load_f16(p, lanes); }
};
struct BF16 {
  using Element = uint16_t;
  static __m256 load(const uint16_t* p, int64_t lanes) { return load_bf16(p, lanes); }
};

template <typename Type, int kTokens>
void dense_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const auto* row = static_cast<const typename Type::Element*>(args.weight) + n * args.K;
    __m256 even[kTokens], odd[kTokens];  // two chains hide the latency of the additions
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) even[t] = odd[t] = _mm256_setzero_ps();
    int64_t k = 0;
    for (; k + 16 <= args.K; k += 16) {
      const __m256 w0 = Type::load(row + k, 8), w1 = Type::load(row + k + 8, 8);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const float* x = args.x + t * args.x_stride + k;
        even[t] = _mm256_fmadd_ps(w0, _mm256_loadu_ps(x), even[t]);
        odd[t] = _mm256_fmadd_ps(w1, _mm256_loadu_ps(x + 8), odd[t]);
      }
    }
    for (; k < args.K; k += 8) {
      const __m256 w0 = Type::load(row + k, args.K - k);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        even[t] = _mm256_fmadd_ps(w0, load_f32(args.x + t * args.x_stride + k, args.K - k), even[t]);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = sum_lanes(_mm256_add_ps(even[t], odd[t]));
      y = args.accumulate ? y + value : value;
    }
  }
}

using Rows = void (*)(const GemvArgs&, int64_t, int64_t);

template <typename Type>
void dense(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensAvx2] = {dense_rows<Type, 1>, dense_rows<Type, 2>, dense_rows<Type, 3>,
                                                      dense_rows<Type, 4>};
  kByTokens[args.T - 1](args, begin, end);
}

}  // namespace

void gemv_order_avx2(float* ordered, const float* x, int64_t K) {
  for (int64_t chunk = 0; chunk < K; chunk += kGemvChunkAvx2) {
    for (int64_t i = 0; i < 8; ++i) {
      for (int64_t j = 0; j < 8; ++j) {
        const int64_t k = chunk + 8 * i + j;
        ordered[chunk + 8 * j + i] = k < K ? x[k] : 0.0f;
      }
    }
  }
}

void gemv_nvfp4_avx2(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensAvx2] = {nvfp4_rows<1>, nvfp4_rows<2>, nvfp4_rows<3>, nvfp4_rows<4>};
  kByTokens[args.T - 1](args, begin, end);
}

void gemv_bnb4_avx2(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensAvx2] = {bnb4_rows<1>, bnb4_rows<2>, bnb4_rows<3>, bnb4_rows<4>};
  kByTokens[args.T - 1](args, begin, end);
}

void gemv_f32_avx2(const GemvArgs& args, int64_t begin, int64_t end) { dense<F32>(args, begin, end); }
void gemv_f16_avx2(const GemvArgs& args, int64_t begin, int64_t end) { dense<F16>(args, begin, end); }
void gemv_bf16_avx2(const GemvArgs& args, int64_t begin, int64_t end) { dense<BF16>(args, begin, end); }

}  // namespace qn
