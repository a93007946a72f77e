// One row of ops/adamw.h: moments, update, weight. Included by adamw_cpu.cpp, adamw_avx2.cpp and adamw_avx512.cpp,
// which compile the same statements for their instruction set and export kAdamwRows.
#pragma once

#include "ops/adamw_moments.h"

namespace qn {
namespace {

int64_t tile_columns(int64_t K, int64_t column) { return K - column < kTile ? K - column : kTile; }

// Σ x² in 16 lanes of f64, added in lane order.
double row_squares(const float* x, int64_t count) {
  alignas(64) double lanes[16] = {};
  for (int64_t b = 0; b < count / 16; ++b) {
    QN_BLOCK_LOOP(i) lanes[i] += static_cast<double>(x[16 * b + i]) * x[16 * b + i];
  }
  for (int64_t i = count / 16 * 16; i < count; ++i) lanes[i & 15] += static_cast<double>(x[i]) * x[i];
  double total = 0;
  for (int i = 0; i < 16; ++i) total += lanes[i];
  return total;
}

// m, v in and out f32[n]; u out.
void moments_step(float* m, float* v, float* u, const float* g, int64_t n, const AdamwArgs& args) {
  const MomentRates rates = moment_rates(args);
  for (int64_t i = 0; i < n; ++i) u[i] = step_moments(m[i], v[i], g[i], rates);
}

// --- Weights --------------------------------------------------------------------------------------------------------

void step_dense(const AdamwArgs& args, int64_t row, int64_t column, int64_t n, const float* u, uint32_t* words) {
  const int64_t at = row * args.K + column;
  const float keep = args.keep, rate = args.rate;
  if (args.storage == Storage::kF32) {
    float* x = static_cast<float*>(args.dense) + at;
    for (int64_t i = 0; i < n; ++i) x[i] = stepped(x[i], keep, rate, u[i]);
    return;
  }
  fill_words(words, {args.seed, args.parameter, args.step}, RandomStream::kWeight, at, n);
  uint16_t* x = static_cast<uint16_t*>(args.dense) + at;
  if (args.storage == Storage::kBF16) {
    for (int64_t i = 0; i < n; ++i) {
      x[i] = stochastic_bf16(stepped(bf16_value(x[i]), keep, rate, u[i]), words[i]);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) x[i] = stochastic_f16(stepped(f16_value(x[i]), keep, rate, u[i]), words[i]);
}

// Rounds x[16] onto the grid of a sticky scale. codes in: the old ones (zeros keep their sign bit), out: the new ones.
template <bool kStochastic>
void sticky_block(uint32_t* codes, uint8_t* scale, const float* x, uint32_t growth_word, const uint32_t* words,
                  int32_t& saturated) {
  const StickyScale next = sticky_scale(*scale, block_amax(x), growth_word, saturated);
  *scale = static_cast<uint8_t>(next.code);
  const float S = e4m3_value(next.code), limit = next.limit, boost = kStochastic ? next.boost : 0.0f;
  QN_BLOCK_LOOP(i) {
    codes[i] = sticky_code<kStochastic>(x[i], codes[i], S, limit, boost, kStochastic ? words[i] : 0u);
  }
}

int32_t count_changes(const uint32_t* codes, const uint32_t* before) {
  int32_t changes = 0;
  QN_BLOCK_LOOP(i) changes += codes[i] != before[i] ? 1 : 0;
  return changes;
}

// The values that the update starts from, in units of the global scale.
void load_base(float* base, const AdamwArgs& args, const uint32_t* codes, const uint8_t* scales, int64_t row,
               int64_t column, int64_t n) {
  const int64_t at = row * args.K + column;
  if (args.mode == WeightMode::kFp32) {
    const float* master = static_cast<const float*>(args.master) + at;
    for (int64_t i = 0; i < n; ++i) base[i] = master[i];
    return;
  }
  if (args.mode == WeightMode::kBf16) {
    const uint16_t* master = static_cast<const uint16_t*>(args.master) + at;
    for (int64_t i = 0; i < n; ++i) base[i] = bf16_value(master[i]);
    return;
  }
  for (int64_t b = 0; b < n / 16; ++b) {
    const float S = e4m3_value(scales[b]);
    QN_BLOCK_LOOP(i) base[16 * b + i] = e2m1_value(codes[16 * b + i]) * S;
  }
  if (args.mode != WeightMode::kNvfp4Residual) return;
  alignas(64) uint32_t residual[kTile];
  unpack_nibbles(residual, args.residual_codes + at / 2, n);
  for (int64_t b = 0; b < n / 16; ++b) {
    const float S = e4m3_value(args.residual_scales[at / 16 + b]) * kResidualUnit;
    QN_BLOCK_LOOP(i) base[16 * b + i] += e2m1_value(residual[16 * b + i]) * S;
  }
}

void store_master(const AdamwArgs& args, int64_t at, int64_t n, float* x, const uint32_t* words) {
  if (args.mode == WeightMode::kFp32) {
    float* master = static_cast<float*>(args.master) + at;
    for (int64_t i = 0; i < n; ++i) master[i] = x[i];
  } else if (args.mode == WeightMode::kBf16) {
    uint16_t* master = static_cast<uint16_t*>(args.master) + at;
    for (int64_t i = 0; i < n; ++i) {
      master[i] = stochastic_bf16(x[i], words[i]);
      x[i] = bf16_value(master[i]);
    }
  }
}

void step_residual_block(const AdamwArgs& args, int64_t at, const float* x, const uint32_t* codes, uint8_t scale,
                         uint32_t growth_word, const uint32_t* words, int32_t& saturated) {
  alignas(64) float rest[16];
  alignas(64) uint32_t residual[16];
  const float S = e4m3_value(scale);
  QN_BLOCK_LOOP(i) rest[i] = (x[i] - e2m1_value(codes[i]) * S) * (1 / kResidualUnit);
  unpack_nibbles(residual, args.residual_codes + at / 2, 16);
  sticky_block<true>(residual, args.residual_scales + at / 16, rest, growth_word, words, saturated);
  pack_nibbles(args.residual_codes + at / 2, residual, 16);
}

// words[2b], words[2b + 1]: the draws of block b's weight scale and residual scale, which are words 0 and 1 of the
// block's first quad in the growth stream.
void fill_growth_words(uint32_t* words, const Draw& draw, int64_t element, int64_t n) {
  const auto tag = static_cast<uint32_t>(RandomStream::kScaleGrowth) << 24;
  const auto first = static_cast<uint64_t>(element >> 2);
  for (int64_t b = 0; b < n / 16; ++b) {
    const uint64_t quad = first + 4 * static_cast<uint64_t>(b);
    const PhiloxWords w = philox4x32(static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) | tag,
                                     draw.parameter, draw.step, draw.seed);
    words[2 * b] = w.w[0];
    words[2 * b + 1] = w.w[1];
  }
}

void step_nvfp4(const AdamwArgs& args, int64_t row, int64_t column, int64_t n, const float* u, uint32_t* words,
                AdamwRow* result) {
  const int64_t at = row * args.K + column;
  const Draw draw{args.seed, args.parameter, args.step};
  uint8_t *bytes = args.codes + at / 2, *scales = args.scales + at / 16;
  alignas(64) uint32_t codes[kTile], before[kTile], growth[kTile / 4 + 16];
  alignas(64) float base[kTile], x[kTile];
  unpack_nibbles(codes, bytes, n);
  for (int64_t i = 0; i < n; ++i) before[i] = codes[i];
  load_base(base, args, codes, scales, row, column, n);
  for (int64_t i = 0; i < n; ++i) x[i] = base[i] * args.keep - args.rate * u[i];
  fill_growth_words(growth, draw, at, n);
  const bool residual = args.mode == WeightMode::kNvfp4Residual;
  if (args.mode != WeightMode::kFp32) {
    fill_words(words, draw, residual ? RandomStream::kResidual : RandomStream::kWeight, at, n);
  }
  store_master(args, at, n, x, words);
  int32_t changed_codes = 0, saturated = 0;
  for (int64_t b = 0; b < n / 16; ++b) {
    int32_t moved = 0;
    QN_BLOCK_LOOP(i) moved |= x[16 * b + i] != base[16 * b + i] ? 1 : 0;
    if (!moved) continue;
    uint32_t* block = codes + 16 * b;
    if (args.mode == WeightMode::kNvfp4) {
      sticky_block<true>(block, scales + b, x + 16 * b, growth[2 * b], words + 16 * b, saturated);
    } else {
      sticky_block<false>(block, scales + b, x + 16 * b, growth[2 * b], nullptr, saturated);
    }
    changed_codes += count_changes(block, before + 16 * b);
    if (residual) {
      step_residual_block(args, at + 16 * b, x + 16 * b, block, scales[b], growth[2 * b + 1], words + 16 * b,
                          saturated);
    }
  }
  pack_nibbles(bytes, codes, n);
  result->changed_codes += changed_codes;
  result->saturated += saturated;
}

// --- The row --------------------------------------------------------------------------------------------------------

// Notes which blocks of v differ from `before` once raised to the row's floor.
void note_changes(uint8_t* changed, const float* v, const float* before, float floor, int64_t n) {
  for (int64_t b = 0; b < n / 16; ++b) {
    int32_t moved = 0;
    QN_BLOCK_LOOP(i) moved |= larger(v[16 * b + i], floor) != before[16 * b + i] ? 1 : 0;
    changed[b] = static_cast<uint8_t>(moved);
  }
}

void update_row(const AdamwArgs& args, int64_t row, float* scratch, AdamwRow* result) {
  const int64_t K = args.K, padded = (K + 15) / 16 * 16;
  const float* g = args.g + (row - args.row_begin) * K;
  const Draw draw{args.seed, args.parameter, args.step};
  const bool packed = is_packed(args.moments);
  float *m = scratch, *v = scratch + padded, *log2_v = scratch + 2 * padded;
  auto* changed = reinterpret_cast<uint8_t*>(scratch + 3 * padded);
  alignas(64) float u[kTile], before[kTile];
  alignas(64) uint32_t words[kTile + 16];
  const float floor = packed ? exp2_grid(args.v.rows[row] - kOctavesBelowCentre) : 0.0f;
  *result = {};
  for (int64_t column = 0; column < K; column += kTile) {
    const int64_t n = tile_columns(K, column);
    load_linear(m + column, args.moments, args.m, row, column, n, K);
    if (packed) {
      load_octaves(v + column, args.moments, args.v, row, column, n, K);
      for (int64_t i = 0; i < n; ++i) {
        before[i] = v[column + i];
        m[column + i] *= square_root(before[i]);  // stored in units of √v
      }
    } else {
      load_linear(v + column, args.moments, args.v, row, column, n, K);
    }
    moments_step(m + column, v + column, u, g + column, n, args);
    if (packed) note_changes(changed + column / 16, v + column, before, floor, n);
    result->update_squares += row_squares(u, n);
    if (args.storage == Storage::kNvfp4) {
      step_nvfp4(args, row, column, n, u, words, result);
    } else {
      step_dense(args, row, column, n, u, words);
    }
  }
  if (packed) {
    store_octaves(args.moments, args.v, draw, row, v, log2_v, changed, K);
    for (int64_t i = 0; i < K; ++i) m[i] /= square_root(v[i]);
  } else {
    store_linear(args.moments, args.v, draw, RandomStream::kSecondMoment, row, v, K);
  }
  store_linear(args.moments, args.m, draw, RandomStream::kFirstMoment, row, m, K);
}

void store_row(const StoreRowsArgs& args, int64_t row, const float* x) {
  store_linear(args.format, args.view, {args.seed, args.parameter, args.step}, RandomStream::kGradient, row, x, args.K);
}

void load_row(const StoreRowsArgs& args, int64_t row, float* x) {
  for (int64_t column = 0; column < args.K; column += kTile) {
    load_linear(x + column, args.format, args.view, row, column, tile_columns(args.K, column), args.K);
  }
}

constexpr AdamwKernels kAdamwRows = {update_row, store_row, load_row, row_squares};

}  // namespace
}  // namespace qn
