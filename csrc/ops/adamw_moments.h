// Rows of stored moments to and from f32: the bodies that ops/adamw_rows.h puts together. Included once by each file
// that compiles for an instruction set, inside its anonymous namespace's translation unit; loops run over blocks of 16
// or tiles of kTile elements so that any compiler can vectorise them, and every sum has a fixed order.
#pragma once

#include "ops/adamw_kernels.h"
#include "ops/adamw_packed.h"

// A loop over the 16 elements of a block. Early complete unrolling would hide it from the vectoriser.
#define QN_BLOCK_LOOP(i) _Pragma("GCC unroll 1") for (int i = 0; i < 16; ++i)

namespace qn {
namespace {

using namespace adamw;

constexpr int kTile = 256;

struct Draw {
  uint64_t seed;
  uint32_t parameter, step;
};

// words[i] of elements [element, element + n), n <= kTile.
template <int kRounds = 10>
void fill_words(uint32_t* words, const Draw& draw, RandomStream stream, int64_t element, int64_t n) {
  const auto tag = static_cast<uint32_t>(stream) << 24;
  const auto first = static_cast<uint64_t>(element >> 2);
  const int64_t offset = element & 3, quads = (offset + n + 3) / 4;
  alignas(64) uint32_t plane[4][kTile / 4 + 16];
  for (int64_t q = 0; q < quads; ++q) {
    const uint64_t quad = first + static_cast<uint64_t>(q);
    const PhiloxWords w = philox4x32<kRounds>(static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) | tag,
                                              draw.parameter, draw.step, draw.seed);
    for (int k = 0; k < 4; ++k) plane[k][q] = w.w[k];
  }
  if (offset == 0 && n % 4 == 0) {
    for (int64_t q = 0; q < quads; ++q) {
      for (int k = 0; k < 4; ++k) words[4 * q + k] = plane[k][q];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) words[i] = plane[(offset + i) & 3][(offset + i) >> 2];
  }
}

// Nibbles of n elements (n % 2 == 0) to one code a word, and back.
void unpack_nibbles(uint32_t* codes, const uint8_t* bytes, int64_t n) {
  for (int64_t j = 0; j < n / 2; ++j) {
    codes[2 * j] = bytes[j] & 15u;
    codes[2 * j + 1] = bytes[j] >> 4;
  }
}
void pack_nibbles(uint8_t* bytes, const uint32_t* codes, int64_t n) {
  for (int64_t j = 0; j < n / 2; ++j) bytes[j] = static_cast<uint8_t>(codes[2 * j] | (codes[2 * j + 1] << 4));
}

// Bits of the largest magnitude; as integers, magnitudes of floats keep their order.
int32_t largest_bits(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
float block_amax(const float* x) {
  int32_t largest = 0;
  QN_BLOCK_LOOP(i) {
    const auto bits = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return float_of(static_cast<uint32_t>(largest));
}

const uint8_t* nibble_row(const MomentView& view, int64_t row, int64_t K) {
  return static_cast<const uint8_t*>(view.values) + row * (K / 2);
}

// --- Plain moments, and gradients ------------------------------------------------------------------------------------

// x[0, n) of columns [column, column + n); n and column are multiples of 16 for packed formats.
void load_linear(float* x, MomentFormat format, const MomentView& view, int64_t row, int64_t column, int64_t n,
                 int64_t K) {
  if (format == MomentFormat::kFp32) {
    const float* from = static_cast<const float*>(view.values) + row * K + column;
    for (int64_t i = 0; i < n; ++i) x[i] = from[i];
    return;
  }
  if (format == MomentFormat::kBf16) {
    const uint16_t* from = static_cast<const uint16_t*>(view.values) + row * K + column;
    for (int64_t i = 0; i < n; ++i) x[i] = bf16_value(from[i]);
    return;
  }
  const uint8_t* scales = view.scales + row * (K / 16) + column / 16;
  const float level = view.rows[row];
  if (format == MomentFormat::kNvfp4) {
    alignas(64) uint32_t codes[kTile];
    unpack_nibbles(codes, nibble_row(view, row, K) + column / 2, n);
    for (int64_t b = 0; b < n / 16; ++b) {
      const float S = e4m3_value(scales[b]) * level;
      QN_BLOCK_LOOP(i) x[16 * b + i] = e2m1_value(codes[16 * b + i]) * S;
    }
    return;
  }
  const int8_t* values = static_cast<const int8_t*>(view.values) + row * K + column;
  for (int64_t b = 0; b < n / 16; ++b) {
    const float S = e4m3_value(scales[b]) * level;
    QN_BLOCK_LOOP(i) x[16 * b + i] = static_cast<float>(static_cast<int32_t>(values[16 * b + i])) * S;
  }
}

void store_linear_block(uint32_t* codes, const float* x, float S, const uint32_t* words) {
  const float divisor = divisor_of(S);
  QN_BLOCK_LOOP(i) codes[i] = linear_e2m1(x[i], divisor, words[i]);
}
void store_linear_block(int8_t* values, const float* x, float S, const uint32_t* words) {
  const float divisor = divisor_of(S);
  QN_BLOCK_LOOP(i) values[i] = linear_int8(x[i], divisor, words[i]);
}

// Unbiased: block scales are rounded up, so nothing saturates.
void store_linear(MomentFormat format, const MomentView& view, const Draw& draw, RandomStream stream, int64_t row,
                  const float* x, int64_t K) {
  if (format == MomentFormat::kFp32) {
    float* to = static_cast<float*>(view.values) + row * K;
    for (int64_t i = 0; i < K; ++i) to[i] = x[i];
    return;
  }
  alignas(64) uint32_t words[kTile + 16], codes[kTile];
  const float largest = largest_code(format);
  float level = 1;
  if (format != MomentFormat::kBf16) {
    const float amax = float_of(static_cast<uint32_t>(largest_bits(x, K)));
    view.rows[row] = level = linear_level(amax, largest);
  }
  for (int64_t column = 0; column < K; column += kTile) {
    const int64_t n = K - column < kTile ? K - column : kTile;
    fill_words(words, draw, stream, row * K + column, n);
    const float* from = x + column;
    if (format == MomentFormat::kBf16) {
      uint16_t* to = static_cast<uint16_t*>(view.values) + row * K + column;
      for (int64_t i = 0; i < n; ++i) to[i] = stochastic_bf16(from[i], words[i]);
      continue;
    }
    uint8_t* scales = view.scales + row * (K / 16) + column / 16;
    for (int64_t b = 0; b < n / 16; ++b) {
      scales[b] = static_cast<uint8_t>(linear_scale(block_amax(from + 16 * b), largest, level));
      const float S = e4m3_value(scales[b]) * level;
      if (format == MomentFormat::kNvfp4) {
        store_linear_block(codes + 16 * b, from + 16 * b, S, words + 16 * b);
      } else {
        store_linear_block(static_cast<int8_t*>(view.values) + row * K + column + 16 * b, from + 16 * b, S,
                           words + 16 * b);
      }
    }
    if (format == MomentFormat::kNvfp4) {
      pack_nibbles(static_cast<uint8_t*>(view.values) + row * (K / 2) + column / 2, codes, n);
    }
  }
}

}  // namespace
}  // namespace qn
