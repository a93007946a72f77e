// quantize_nvfp4_rows() and dequantize_nvfp4_rows() with a block of 16 in two registers. The same operations on each
// element in the same order, so the bytes are the same.
#include <immintrin.h>

#include "ops/quantize.h"

namespace qn {

namespace {

// Columns 0 to 7 and 8 to 15.
struct Values {
  __m256 low, high;
};
struct Codes {
  __m256i low, high;
};
struct Block {
  Codes codes;
  uint8_t scale;
};

__m256 abs_of(__m256 x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }

// Rounded to E2M1, one code a lane: a comparison that holds is −1.
__m256i encode(__m256 value) {
  const __m256 a = abs_of(value);
  const auto above = [&](float midpoint) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(midpoint), _CMP_GT_OQ));
  };
  const auto at_least = [&](float midpoint) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(midpoint), _CMP_GE_OQ));
  };
  const __m256i few = _mm256_add_epi32(_mm256_add_epi32(above(0.25f), at_least(0.75f)),
                                       _mm256_add_epi32(above(1.25f), at_least(1.75f)));
  const __m256i many = _mm256_add_epi32(_mm256_add_epi32(above(2.5f), at_least(3.5f)), above(5.0f));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(value), 28), _mm256_set1_epi32(8));
  return _mm256_sub_epi32(sign, _mm256_add_epi32(few, many));
}

QN_BLOCK_CODE inline Codes block_codes(Values t, uint8_t scale) {
  if (scale == 0) return {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const __m256 s = _mm256_set1_ps(e4m3_to_f32(scale));
  return {encode(_mm256_div_ps(t.low, s)), encode(_mm256_div_ps(t.high, s))};
}

__m256 decode(__m256i codes) {
  const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
  return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign));
}

__m256 squared_error(__m256 t, __m256i codes, __m256 scale) {
  const __m256 error = _mm256_sub_ps(_mm256_mul_ps(decode(codes), scale), t);
  return _mm256_mul_ps(error, error);
}

// nvfp4_block_error(): the same tree, 8 + 8, 4 + 4, 2 + 2, 1 + 1.
QN_BLOCK_CODE inline float block_error(Values t, Codes codes, uint8_t scale) {
  const __m256 s = _mm256_set1_ps(e4m3_to_f32(scale));
  const __m256 eight = _mm256_add_ps(squared_error(t.low, codes.low, s), squared_error(t.high, codes.high, s));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

float largest_of(Values t) {
  const __m256 eight = _mm256_max_ps(abs_of(t.low), abs_of(t.high));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

Block quantize_block(Values t, ScaleRule rule) {
  const float amax = largest_of(t);
  if (rule != ScaleRule::kFourOverSix) {
    const uint8_t scale = rule == ScaleRule::kAmax ? nvfp4_amax_scale(amax) : nvfp4_amax_up_scale(amax);
    return {block_codes(t, scale), scale};
  }
  const uint8_t six = nvfp4_amax_scale(amax), four = f32_to_e4m3(amax / 4.0f);
  const Codes by_six = block_codes(t, six), by_four = block_codes(t, four);
  // Selected, not branched to: which one is better nobody can predict, and a wrong guess costs more than both.
  const int use_four = -int(block_error(t, by_four, four) < block_error(t, by_six, six));
  const __m256i mask = _mm256_set1_epi32(use_four);
  return {{_mm256_blendv_epi8(by_six.low, by_four.low, mask), _mm256_blendv_epi8(by_six.high, by_four.high, mask)},
          static_cast<uint8_t>(six ^ ((six ^ four) & use_four))};
}

void store_codes(uint8_t* out, Codes codes) {
  // Packing works in halves of 128 bits: 0-3 8-11, 4-7 12-15, put in order before they become bytes.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes.low, codes.high), 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  // Bytes even + 16 · odd, then the low byte of each of the eight sums.
  const __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x1001));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(pairs, pairs));
}

bool is_finite(Values x) {
  const auto bad = [](__m256 values) {
    return _mm256_cmpgt_epi32(_mm256_castps_si256(abs_of(values)), _mm256_set1_epi32(0x7f7fffff));
  };
  return _mm256_testz_si256(_mm256_or_si256(bad(x.low), bad(x.high)), _mm256_set1_epi32(-1));
}

}  // namespace

void quantize_nvfp4_rows_avx2(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const __m256 global_scale = _mm256_set1_ps(args.global_scale);
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t k = 0; k < args.K; k += kBlockSize) {
      const int64_t at = row * args.K + k;
      const Values x = {_mm256_loadu_ps(args.x + at), _mm256_loadu_ps(args.x + at + 8)};
      if (!is_finite(x)) refuse_nonfinite_block(args.x + at, args.random.first_row + row, k);
      const Values t = {_mm256_div_ps(x.low, global_scale), _mm256_div_ps(x.high, global_scale)};
      const Block block = quantize_block(t, args.scale_rule);
      args.scales[at / kBlockSize] = block.scale;
      store_codes(args.codes + at / 2, block.codes);
    }
  }
}

void dequantize_nvfp4_rows_avx2(const DequantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const __m256 global_scale = _mm256_set1_ps(args.global_scale);
  for (int64_t block = row_begin * args.K / kBlockSize; block < row_end * args.K / kBlockSize; ++block) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(args.codes + block * (kBlockSize / 2)));
    const __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
    const __m256 scale = _mm256_set1_ps(e4m3_to_f32(args.scales[block]));
    const auto value = [&](__m128i eight) {
      return _mm256_mul_ps(_mm256_mul_ps(decode(_mm256_cvtepu8_epi32(eight)), scale), global_scale);
    };
    _mm256_storeu_ps(args.out + block * kBlockSize, value(nibbles));
    _mm256_storeu_ps(args.out + block * kBlockSize + 8, value(_mm_unpackhi_epi64(nibbles, nibbles)));
  }
}

}  // namespace qn
