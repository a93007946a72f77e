// The tile arithmetic of attention over vectors of kWidth floats. Included once by each instruction set's file, after
// it has defined, in an anonymous namespace of qn:
//   Vec, kWidth, kBlockRows × kBlockVecs and kDotRows (what the registers hold), load, store, broadcast, zero, add,
//   sub, mul, max, fma (a·b + c), round, less, clear (0 where the mask is set), scale_by_power (x · 2^n), highest and
//   total (of a vector's elements), unpack_low, unpack_high, unpack_low_pairs, unpack_high_pairs (within 128 bits),
//   load_lanes (128 bits from each of kWidth / 4 rows), store_lane_sums (the 128-bit parts added), and widen_f16,
//   widen_bf16.
// A file may define QN_UNROLL, which stands before the loops over one block's registers.
// Everything here is internal to the including file, as code compiled for one instruction set has to be.
#pragma once

#include "ops/attention_tiles.h"

#if !defined(QN_UNROLL)
#define QN_UNROLL
#endif

namespace qn {

namespace {

// How many rows ahead of use a read straight from the key/value cache asks for memory. Measured: decode from memory
// reads 25 % (16 bits) and 12 % (f32) faster than with the processor's own look-ahead alone.
constexpr int64_t kRowsAhead = 16;

struct F32 {
  static constexpr int64_t kBytes = 4;
  static constexpr bool kFar = false;
  static Vec at(const void* base, int64_t i) { return load(static_cast<const float*>(base) + i); }
};
struct FarF32 : F32 {
  static constexpr bool kFar = true;
};
// 16-bit values lie in the cache alone: packed rows are f32.
struct F16 {
  static constexpr int64_t kBytes = 2;
  static constexpr bool kFar = true;
  static Vec at(const void* base, int64_t i) { return widen_f16(static_cast<const uint16_t*>(base) + i); }
};
struct BF16 {
  static constexpr int64_t kBytes = 2;
  static constexpr bool kFar = true;
  static Vec at(const void* base, int64_t i) { return widen_bf16(static_cast<const uint16_t*>(base) + i); }
};

// Asks for `count` elements from element i of base, which may lie past its end.
template <class Format>
void fetch(const void* base, int64_t i, int64_t count) {
  const char* from = static_cast<const char*>(base) + i * Format::kBytes;
  for (int64_t at = 0; at < count * Format::kBytes; at += 64) __builtin_prefetch(from + at);
}

// kRows × kVecs of c in registers over all of depth.
template <class Format, int kRows, int kVecs>
void product_block(const TileProduct& x, int64_t row, int64_t column) {
  Vec sum[kRows][kVecs];
  float* c = x.c.data + row * x.c.stride + column;
  QN_UNROLL for (int r = 0; r < kRows; ++r) {
    QN_UNROLL for (int j = 0; j < kVecs; ++j) sum[r][j] = x.add ? load(c + r * x.c.stride + j * kWidth) : zero();
  }
  const float* a = x.a.data + row * x.a.row;
  for (int64_t i = 0; i < x.depth; ++i) {
    if constexpr (Format::kFar) {  // at compile time: as a flag it cost prefill 10 %
      if (column == 0) fetch<Format>(x.b.data, (i + kRowsAhead) * x.b.stride, x.columns);
    }
    Vec b[kVecs];
    QN_UNROLL for (int j = 0; j < kVecs; ++j) b[j] = Format::at(x.b.data, i * x.b.stride + column + j * kWidth);
    QN_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec factor = broadcast(a[r * x.a.row + i * x.a.column]);
      QN_UNROLL for (int j = 0; j < kVecs; ++j) sum[r][j] = fma(factor, b[j], sum[r][j]);
    }
  }
  QN_UNROLL for (int r = 0; r < kRows; ++r) {
    QN_UNROLL for (int j = 0; j < kVecs; ++j) store(c + r * x.c.stride + j * kWidth, sum[r][j]);
  }
}

// All rows of kVecs vectors of columns: kBlockRows at a time, then what is left.
template <class Format, int kVecs>
void product_columns(const TileProduct& x, int64_t column) {
  int64_t row = 0;
  for (; row + kBlockRows <= x.rows; row += kBlockRows) product_block<Format, kBlockRows, kVecs>(x, row, column);
  static_assert(kBlockRows == 5 || kBlockRows == 6);
  switch (x.rows - row) {
    case 5:
      return product_block<Format, 5, kVecs>(x, row, column);
    case 4:
      return product_block<Format, 4, kVecs>(x, row, column);
    case 3:
      return product_block<Format, 3, kVecs>(x, row, column);
    case 2:
      return product_block<Format, 2, kVecs>(x, row, column);
    case 1:
      return product_block<Format, 1, kVecs>(x, row, column);
    default:
      return;
  }
}

template <class Format>
void product_as(const TileProduct& x) {
  int64_t column = 0;
  for (; column + kBlockVecs * kWidth <= x.columns; column += kBlockVecs * kWidth) {
    product_columns<Format, kBlockVecs>(x, column);
  }
  if constexpr (kBlockVecs * kWidth > kLane) {
    for (; column < x.columns; column += kLane) product_columns<Format, kLane / kWidth>(x, column);
  }
}

void product(const TileProduct& args) {
  if (args.b.dtype == DType::kF32) return args.b.far ? product_as<FarF32>(args) : product_as<F32>(args);
  return args.b.dtype == DType::kF16 ? product_as<F16>(args) : product_as<BF16>(args);
}

// Four columns of kWidth keys at a time: a 4 × 4 transposition inside each 128-bit part.
void transpose(float* to, const float* from, int64_t stride, int64_t keys, int64_t D) {
  for (int64_t s = 0; s < keys; s += kWidth) {
    for (int64_t d = 0; d < D; d += 4) {
      Vec row[4];
      for (int j = 0; j < 4; ++j) row[j] = load_lanes(from + (s + j) * stride + d, 4 * stride);
      const Vec low01 = unpack_low(row[0], row[1]), high01 = unpack_high(row[0], row[1]);
      const Vec low23 = unpack_low(row[2], row[3]), high23 = unpack_high(row[2], row[3]);
      store(to + d * kKeyTile + s, unpack_low_pairs(low01, low23));
      store(to + (d + 1) * kKeyTile + s, unpack_high_pairs(low01, low23));
      store(to + (d + 2) * kKeyTile + s, unpack_low_pairs(high01, high23));
      store(to + (d + 3) * kKeyTile + s, unpack_high_pairs(high01, high23));
    }
  }
}

template <class Format>
void widen_as(float* to, const uint16_t* from, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, Format::at(from, i));
  if (i == count) return;
  uint16_t tail[kWidth] = {};
  float wide[kWidth];
  for (int64_t j = i; j < count; ++j) tail[j - i] = from[j];
  store(wide, Format::at(tail, 0));
  for (int64_t j = i; j < count; ++j) to[j] = wide[j - i];
}

void widen(float* to, const void* from, DType dtype, int64_t count) {
  const auto* bits = static_cast<const uint16_t*>(from);
  return dtype == DType::kF16 ? widen_as<F16>(to, bits, count) : widen_as<BF16>(to, bits, count);
}

// e^x = 2^n e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2: the Taylor series to r^7 is off by less than 6e-9, so that
// what is left is rounding, below 1.5e-7 relative. Below 2^-126 the result is 0; NaN stays NaN. For x ≤ 88.
Vec exp_of(Vec x) {
  constexpr float kLog2e = 0x1.715476p+0f, kLn2High = 0x1.62e430p-1f, kLn2Low = -0x1.05c610p-29f;
  const Vec smallest = broadcast(-87.33654f);  // ln 2^-126
  const Vec bounded = max(smallest, x);        // keeps −∞ out of the arithmetic; a NaN as second argument stays
  const Vec n = round(mul(bounded, broadcast(kLog2e)));
  const Vec r = fma(n, broadcast(-kLn2Low), fma(n, broadcast(-kLn2High), bounded));
  Vec sum = broadcast(1.0f / 5040);
  constexpr float kInverseFactorials[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};
  for (const float coefficient : kInverseFactorials) sum = fma(sum, r, broadcast(coefficient));
  return clear(less(x, smallest), scale_by_power(sum, n));
}

void exp_all(float* y, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) store(y + i, exp_of(load(x + i)));
}

float softmax(float* s, int64_t count, float scale, float* max_so_far, float* sum) {
  Vec top = broadcast(*max_so_far);
  for (int64_t i = 0; i < count; i += kWidth) top = max(top, load(s + i));
  const float top_value = highest(top);
  // A row that has seen nothing yet has max = −∞; exp(−∞ − 0) is the zero it should be, a NaN score stays a NaN.
  const Vec shift = broadcast(top_value == -__builtin_inff() ? 0.0f : top_value), scales = broadcast(scale);
  Vec sums = zero();
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec p = exp_of(mul(sub(load(s + i), shift), scales));
    store(s + i, p);
    sums = add(sums, p);
  }
  float factors[kWidth];
  store(factors, exp_of(mul(sub(broadcast(*max_so_far), shift), scales)));
  *max_so_far = top_value;
  *sum = *sum * factors[0] + total(sums);
  return factors[0];
}

void gradient(float* s, float* dp, int64_t count, float scale, float lse, float delta) {
  const Vec scales = broadcast(scale);
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec p = exp_of(fma(load(s + i), scales, broadcast(-lse)));
    store(s + i, p);
    store(dp + i, mul(mul(p, sub(load(dp + i), broadcast(delta))), scales));
  }
}

// kRows rows against four keys; the sums of a row's four keys are added up together.
template <class Format, int kRows>
void dot_block(const TileDot& x, int64_t row, int64_t key) {
  const int64_t valid = x.keys - key < 4 ? x.keys - key : 4;
  int64_t from[4];
  for (int i = 0; i < 4; ++i) from[i] = (key + (i < valid ? i : valid - 1)) * x.k_stride;
  for (int64_t i = 0; i < 4; ++i) fetch<Format>(x.k, (key + i + kRowsAhead) * x.k_stride, x.D);
  Vec sum[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 4; ++i) sum[r][i] = zero();
  }
  for (int64_t d = 0; d < x.D; d += kWidth) {
    Vec k[4];
    for (int i = 0; i < 4; ++i) k[i] = Format::at(x.k, from[i] + d);
    for (int r = 0; r < kRows; ++r) {
      const Vec q = load(x.q + (row + r) * x.q_stride + d);
      for (int i = 0; i < 4; ++i) sum[r][i] = fma(q, k[i], sum[r][i]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const Vec pairs01 = add(unpack_low(sum[r][0], sum[r][1]), unpack_high(sum[r][0], sum[r][1]));
    const Vec pairs23 = add(unpack_low(sum[r][2], sum[r][3]), unpack_high(sum[r][2], sum[r][3]));
    float four[4];
    store_lane_sums(four, add(unpack_low_pairs(pairs01, pairs23), unpack_high_pairs(pairs01, pairs23)));
    for (int64_t i = 0; i < valid; ++i) x.s[(row + r) * kKeyTile + key + i] = four[i];
  }
}

template <class Format>
void dot_as(const TileDot& x) {
  for (int64_t key = 0; key < x.keys; key += 4) {
    int64_t row = 0;
    for (; row + kDotRows <= x.rows; row += kDotRows) dot_block<Format, kDotRows>(x, row, key);
    if constexpr (kDotRows > 2) {
      if (row + 2 <= x.rows) {
        dot_block<Format, 2>(x, row, key);
        row += 2;
      }
    }
    if (row < x.rows) dot_block<Format, 1>(x, row, key);
  }
}

void dot(const TileDot& args) {
  if (args.k_dtype == DType::kF32) return dot_as<F32>(args);
  return args.k_dtype == DType::kF16 ? dot_as<F16>(args) : dot_as<BF16>(args);
}

constexpr AttentionKernels kKernels = {product, transpose, widen, softmax, gradient, exp_all, dot};

}  // namespace

}  // namespace qn
