// quantize_nvfp4_rows() and dequantize_nvfp4_rows() with a block of 16 in one register. The same operations on each
// element in the same order, so the bytes are the same.
#include <immintrin.h>

#include "ops/quantize.h"

namespace qn {

namespace {

// t / scale rounded to E2M1, one code a lane.
QN_BLOCK_CODE inline __m512i block_codes(__m512 t, uint8_t scale) {
  if (scale == 0) return _mm512_setzero_si512();
  const __m512 value = _mm512_div_ps(t, _mm512_set1_ps(e4m3_to_f32(scale)));
  const __m512 a = _mm512_abs_ps(value);
  const __m512i one = _mm512_set1_epi32(1);
  const auto above = [&](float midpoint) { return _mm512_cmp_ps_mask(a, _mm512_set1_ps(midpoint), _CMP_GT_OQ); };
  const auto at_least = [&](float midpoint) { return _mm512_cmp_ps_mask(a, _mm512_set1_ps(midpoint), _CMP_GE_OQ); };
  __m512i code = _mm512_maskz_set1_epi32(above(0.25f), 1);
  code = _mm512_mask_add_epi32(code, at_least(0.75f), code, one);
  code = _mm512_mask_add_epi32(code, above(1.25f), code, one);
  code = _mm512_mask_add_epi32(code, at_least(1.75f), code, one);
  code = _mm512_mask_add_epi32(code, above(2.5f), code, one);
  code = _mm512_mask_add_epi32(code, at_least(3.5f), code, one);
  code = _mm512_mask_add_epi32(code, above(5.0f), code, one);
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(value), 28), _mm512_set1_epi32(8));
  return _mm512_or_si512(code, sign);
}

__m512 decode(__m512i codes) {
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f,
                                      -3.0f, -4.0f, -6.0f);
  return _mm512_permutexvar_ps(codes, table);
}

// nvfp4_block_error(): the same tree, 8 + 8, 4 + 4, 2 + 2, 1 + 1.
QN_BLOCK_CODE inline float block_error(__m512 t, __m512i codes, uint8_t scale) {
  const __m512 error = _mm512_sub_ps(_mm512_mul_ps(decode(codes), _mm512_set1_ps(e4m3_to_f32(scale))), t);
  const __m512 squared = _mm512_mul_ps(error, error);
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(squared), _mm512_extractf32x8_ps(squared, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Block {
  __m512i codes;
  uint8_t scale;
};

Block quantize_block(__m512 t, ScaleRule rule) {
  const float amax = _mm512_reduce_max_ps(_mm512_abs_ps(t));
  if (rule != ScaleRule::kFourOverSix) {
    const uint8_t scale = rule == ScaleRule::kAmax ? nvfp4_amax_scale(amax) : nvfp4_amax_up_scale(amax);
    return {block_codes(t, scale), scale};
  }
  const uint8_t six = nvfp4_amax_scale(amax), four = f32_to_e4m3(amax / 4.0f);
  const __m512i six_codes = block_codes(t, six), four_codes = block_codes(t, four);
  // Selected, not branched to: which one is better nobody can predict, and a wrong guess costs more than both.
  const uint32_t use_four = 0u - uint32_t(block_error(t, four_codes, four) < block_error(t, six_codes, six));
  return {_mm512_mask_mov_epi32(six_codes, static_cast<__mmask16>(use_four), four_codes),
          static_cast<uint8_t>(six ^ ((six ^ four) & use_four))};
}

void store_codes(uint8_t* out, __m512i codes) {
  // Bytes even + 16 · odd, then the low byte of each of the eight sums.
  const __m128i pairs = _mm_maddubs_epi16(_mm512_cvtepi32_epi8(codes), _mm_set1_epi16(0x1001));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(pairs, pairs));
}

}  // namespace

void quantize_nvfp4_rows_avx512(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const __m512 global_scale = _mm512_set1_ps(args.global_scale);
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t k = 0; k < args.K; k += kBlockSize) {
      const int64_t at = row * args.K + k;
      const __m512 x = _mm512_loadu_ps(args.x + at);
      // 0x99: NaN (quiet, signalling) or an infinity of either sign
      if (_mm512_fpclass_ps_mask(x, 0x99)) refuse_nonfinite_block(args.x + at, args.random.first_row + row, k);
      const Block block = quantize_block(_mm512_div_ps(x, global_scale), args.scale_rule);
      args.scales[at / kBlockSize] = block.scale;
      store_codes(args.codes + at / 2, block.codes);
    }
  }
}

void dequantize_nvfp4_rows_avx512(const DequantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const __m512 global_scale = _mm512_set1_ps(args.global_scale);
  for (int64_t block = row_begin * args.K / kBlockSize; block < row_end * args.K / kBlockSize; ++block) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(args.codes + block * (kBlockSize / 2)));
    const __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
    const __m512 scaled =
        _mm512_mul_ps(decode(_mm512_cvtepu8_epi32(nibbles)), _mm512_set1_ps(e4m3_to_f32(args.scales[block])));
    _mm512_storeu_ps(args.out + block * kBlockSize, _mm512_mul_ps(scaled, global_scale));
  }
}

}  // namespace qn
