// AVX-512 matrix-vector products: the weight is read once, as stored, and every code meets f32 activations.
//
// NVFP4: a register holds 64 code bytes, so dword i has columns 8i .. 8i+7 of 128 and nibble j of every dword is one
// permute away from 16 f32 values, columns {8i + j}. x is put in that order beforehand. Dword i lies in block i / 2:
// its eight products share a scale, which is applied once. 28 vector operations per 72 bytes of weight.
// Bitsandbytes codes differ by the sixteen values and by the scales, of which 64 columns, half of the lanes, share one.
#include "ops/gemv_avx512.h"

namespace qn {

namespace {

// Bytes of codes to ask for in advance: the hardware's own prefetch stops at each 4 KiB page. Past the end it is
// ignored.
constexpr int64_t kAhead = 2048;

__mmask16 first(int64_t lanes) { return static_cast<__mmask16>(lanes >= 16 ? 0xffff : (1 << lanes) - 1); }

// Eight scales, each for two lanes, 2^8 too small.
__m512 lane_scales(__m128i scales) {
  const __m256i twice = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                         4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
  const __m256i halves = _mm256_shuffle_epi8(_mm256_broadcastq_epi64(scales), twice);
  return _mm512_cvtph_ps(_mm256_slli_epi16(halves, 7));
}

// sum[t] += the products of 128 columns with token t, whose ordered columns start at x + t · stride.
template <int kTokens>
inline void add_chunk(__m512 sum[kTokens], __m512i codes, __m512 values, __m512 scales, const float* x,
                      int64_t stride) {
  __m512 product[kTokens];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const __m512 code = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * j), values);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512 column = _mm512_loadu_ps(x + t * stride + 16 * j);
      product[t] = j == 0 ? _mm512_mul_ps(code, column) : _mm512_fmadd_ps(code, column, product[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_fmadd_ps(product[t], scales, sum[t]);
}

struct Nvfp4 {
  using Scale = uint8_t;
  static constexpr int64_t kColumns = 16;  // of one scale
  static __m512 values(const GemvArgs&) { return e2m1_values(); }
  static __m512 chunk_scales(const uint8_t* scales) {
    return lane_scales(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales)));
  }
  static __m512 rest_scales(const uint8_t* scales, int64_t count) {
    return lane_scales(_mm_maskz_loadu_epi8(first(count), scales));
  }
  static float row_value(__m512 sum, const GemvArgs& args) {
    return _mm512_reduce_add_ps(sum) * kE4M3AsF16 * args.global_scale;
  }
};

struct Bnb4 {
  using Scale = float;
  static constexpr int64_t kColumns = 64;
  static __m512 values(const GemvArgs& args) { return _mm512_loadu_ps(args.values); }
  static __m512 chunk_scales(const float* absmax) {
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(absmax[0]), _mm512_set1_ps(absmax[1]));
  }
  // Of one block: the lanes of the other one hold codes and columns of zeros.
  static __m512 rest_scales(const float* absmax, int64_t) { return _mm512_set1_ps(absmax[0]); }
  static float row_value(__m512 sum, const GemvArgs&) { return _mm512_reduce_add_ps(sum); }
};

template <typename Form, int kTokens>
void packed_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kScales = kGemvChunkAvx512 / Form::kColumns;
  const int64_t full = args.K / kGemvChunkAvx512, rest = args.K % kGemvChunkAvx512;
  const __m512 values = Form::values(args);
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* codes = static_cast<const uint8_t*>(args.weight) + n * (args.K / 2);
    const auto* scales = static_cast<const typename Form::Scale*>(args.scales) + n * (args.K / Form::kColumns);
    const float* x = args.x;
    __m512 sum[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t chunk = 0; chunk < full; ++chunk, codes += 64, scales += kScales, x += kGemvChunkAvx512) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
      add_chunk<kTokens>(sum, _mm512_loadu_si512(codes), values, Form::chunk_scales(scales), x, args.x_stride);
    }
    if (rest > 0) {
      const __m512i words = _mm512_maskz_loadu_epi32(first(rest / 8), codes);
      add_chunk<kTokens>(sum, words, values, Form::rest_scales(scales, rest / Form::kColumns), x, args.x_stride);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = Form::row_value(sum[t], args);
      y = args.accumulate ? y + value : value;
    }
  }
}

struct F32 {
  using Element = float;
  static __m512 load(const float* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
};
struct F16 {
  using Element = uint16_t;
  static __m512 load(const uint16_t* p, __mmask16 lanes) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p)); }
};
struct BF16 {
  using Element = uint16_t;
  static __m512 load(const uint16_t* p, __mmask16 lanes) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
};

template <typename Type, int kTokens>
void dense_rows(const GemvArgs& args, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const auto* row = static_cast<const typename Type::Element*>(args.weight) + n * args.K;
    __m512 even[kTokens], odd[kTokens];  // two chains hide the latency of the additions
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) even[t] = odd[t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < args.K; k += 32) {
      const __mmask16 left = first(args.K - k), right = args.K - k > 16 ? first(args.K - k - 16) : 0;
      const __m512 w0 = Type::load(row + k, left), w1 = Type::load(row + k + 16, right);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const float* x = args.x + t * args.x_stride + k;
        even[t] = _mm512_fmadd_ps(w0, _mm512_maskz_loadu_ps(left, x), even[t]);
        odd[t] = _mm512_fmadd_ps(w1, _mm512_maskz_loadu_ps(right, x + 16), odd[t]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      float& y = args.y[t * args.N + n];
      const float value = _mm512_reduce_add_ps(_mm512_add_ps(even[t], odd[t]));
      y = args.accumulate ? y + value : value;
    }
  }
}

using Rows = void (*)(const GemvArgs&, int64_t, int64_t);

template <typename Form>
void packed(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensAvx512] = {
      packed_rows<Form, 1>, packed_rows<Form, 2>, packed_rows<Form, 3>, packed_rows<Form, 4>,
      packed_rows<Form, 5>, packed_rows<Form, 6>, packed_rows<Form, 7>, packed_rows<Form, 8>};
  kByTokens[args.T - 1](args, begin, end);
}

template <typename Type>
void dense(const GemvArgs& args, int64_t begin, int64_t end) {
  static constexpr Rows kByTokens[kGemvTokensAvx512] = {dense_rows<Type, 1>, dense_rows<Type, 2>, dense_rows<Type, 3>,
                                                        dense_rows<Type, 4>, dense_rows<Type, 5>, dense_rows<Type, 6>,
                                                        dense_rows<Type, 7>, dense_rows<Type, 8>};
  kByTokens[args.T - 1](args, begin, end);
}

}  // namespace

void gemv_order_avx512(float* ordered, const float* x, int64_t K) {
  for (int64_t chunk = 0; chunk < K; chunk += kGemvChunkAvx512) {
    for (int64_t i = 0; i < 16; ++i) {
      for (int64_t j = 0; j < 8; ++j) {
        const int64_t k = chunk + 8 * i + j;
        ordered[chunk + 16 * j + i] = k < K ? x[k] : 0.0f;
      }
    }
  }
}

void gemv_nvfp4_avx512(const GemvArgs& args, int64_t begin, int64_t end) { packed<Nvfp4>(args, begin, end); }
void gemv_bnb4_avx512(const GemvArgs& args, int64_t begin, int64_t end) { packed<Bnb4>(args, begin, end); }

void gemv_f32_avx512(const GemvArgs& args, int64_t begin, int64_t end) { dense<F32>(args, begin, end); }
void gemv_f16_avx512(const GemvArgs& args, int64_t begin, int64_t end) { dense<F16>(args, begin, end); }
void gemv_bf16_avx512(const GemvArgs& args, int64_t begin, int64_t end) { dense<BF16>(args, begin, end); }

}  // namespace qn
