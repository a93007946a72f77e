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

int32_t count_changes(const uint32_t* codes, const uint32_t* before) {
  int32_t changes = 0;
  QN_BLOCK_LOOP(i) changes += codes[i] != before[i] ? 1 : 0;
  return changes;
}

// The draws of one block of 16, from its words.
struct BlockDraws {
  alignas(64) uint32_t weight[16], first[16], second[16];
  uint32_t growth, residual_growth;

  explicit BlockDraws(const uint32_t* words)
      : growth(growth_word(words[kGrowthElement], words[kGrowthElement + 1])),
        residual_growth(growth_word(words[kResidualGrowthElement], words[kResidualGrowthElement + 1])) {
    QN_BLOCK_LOOP(i) {
      weight[i] = weight_draw(words[i]);
      first[i] = first_draw(words[i]);
      second[i] = second_draw(words[i]);
    }
  }
};

// The 16 values at element `at` that the update starts from, in units of the global scale.
void load_base(float* base, const AdamwArgs& args, const uint32_t* codes, uint8_t scale, const uint32_t* residual,
               int64_t at) {
  if (args.mode == WeightMode::kFp32) {
    const float* master = static_cast<const float*>(args.master) + at;
    QN_BLOCK_LOOP(i) base[i] = master[i];
    return;
  }
  if (args.mode == WeightMode::kBf16) {
    const uint16_t* master = static_cast<const uint16_t*>(args.master) + at;
    QN_BLOCK_LOOP(i) base[i] = bf16_value(master[i]);
    return;
  }
  const float S = e4m3_value(scale), rest = e4m3_value(args.residual_scales[at / 16]) * kResidualUnit;
  QN_BLOCK_LOOP(i) base[i] = e2m1_value(codes[i]) * S + e2m1_value(residual[i]) * rest;
}

void store_master(const AdamwArgs& args, int64_t at, float* x, const uint32_t* draws) {
  if (args.mode == WeightMode::kFp32) {
    float* master = static_cast<float*>(args.master) + at;
    QN_BLOCK_LOOP(i) master[i] = x[i];
  } else if (args.mode == WeightMode::kBf16) {
    uint16_t* master = static_cast<uint16_t*>(args.master) + at;
    QN_BLOCK_LOOP(i) {
      master[i] = stochastic_bf16(x[i], draws[i] << 8);
      x[i] = bf16_value(master[i]);
    }
  }
}

// Codes that are the nearest of a master, or of what codes and residual together hold.
void step_nearest(const AdamwArgs& args, int64_t at, uint32_t* codes, uint8_t& scale, const float* u,
                  const BlockDraws& draws, int32_t& saturated) {
  const bool with_residual = args.mode == WeightMode::kNvfp4Residual;
  alignas(64) float base[16], x[16];
  alignas(64) uint32_t residual[16];
  if (with_residual) unpack_nibbles(residual, args.residual_codes + at / 2, 16);
  load_base(base, args, codes, scale, residual, at);
  QN_BLOCK_LOOP(i) x[i] = base[i] * args.keep - args.rate * u[i];
  store_master(args, at, x, draws.weight);
  int32_t moved = 0;
  QN_BLOCK_LOOP(i) moved |= x[i] != base[i] ? 1 : 0;
  if (moved == 0) return;
  sticky_block<false>(codes, scale, x, nullptr, draws.growth, saturated);
  if (!with_residual) return;
  const float S = e4m3_value(scale);
  QN_BLOCK_LOOP(i) x[i] = (x[i] - e2m1_value(codes[i]) * S) * (1 / kResidualUnit);
  sticky_block<true>(residual, args.residual_scales[at / 16], x, draws.weight, draws.residual_growth, saturated);
  pack_nibbles(args.residual_codes + at / 2, residual, 16);
}

// words: those of the tile's blocks in the stream kPacked.
void step_nvfp4(const AdamwArgs& args, int64_t row, int64_t column, int64_t n, const float* u, const uint32_t* words,
                AdamwRow* result) {
  const int64_t at = row * args.K + column;
  uint8_t *bytes = args.codes + at / 2, *scales = args.scales + at / 16;
  alignas(64) uint32_t codes[kTile], before[kTile];
  unpack_nibbles(codes, bytes, n);
  for (int64_t i = 0; i < n; ++i) before[i] = codes[i];
  for (int64_t b = 0; b < n / 16; ++b) {
    const BlockDraws draws(words + 16 * b);
    uint32_t* block = codes + 16 * b;
    if (args.mode == WeightMode::kNvfp4) {
      step_weights(args, block, scales[b], u + 16 * b, draws.weight, draws.growth, result->saturated);
    } else {
      step_nearest(args, at + 16 * b, block, scales[b], u + 16 * b, draws, result->saturated);
    }
    result->changed_codes += count_changes(block, before + 16 * b);
  }
  pack_nibbles(bytes, codes, n);
}

// --- Packed moments --------------------------------------------------------------------------------------------------

template <MomentFormat kFormat>
void load_codes(uint32_t* codes, const MomentView& view, int64_t at, int64_t n) {
  if constexpr (kFormat == MomentFormat::kNvfp4) {
    unpack_nibbles(codes, static_cast<const uint8_t*>(view.values) + at / 2, n);
  } else {
    const int8_t* from = static_cast<const int8_t*>(view.values) + at;
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint32_t>(static_cast<int32_t>(from[i]));
  }
}
template <MomentFormat kFormat>
void store_codes(const MomentView& view, const uint32_t* codes, int64_t at, int64_t n) {
  if constexpr (kFormat == MomentFormat::kNvfp4) {
    pack_nibbles(static_cast<uint8_t*>(view.values) + at / 2, codes, n);
  } else {
    int8_t* to = static_cast<int8_t*>(view.values) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(codes[i]);
  }
}

// The centre of a row whose first gradient this is, and how many elements it says anything about.
CentreSum fresh_sum(const PackedRow& row, const float* g, int64_t K) {
  CentreSum sum;
  for (int64_t i = 0; i < K; ++i) {
    const float v = fresh_element(row, g[i]).v;
    sum.eighths += v > kLargestDead ? fresh_eighths(v) : 0;
    sum.live += v > kLargestDead ? 1 : 0;
  }
  return sum;
}

// A row without any gradient yet stays as it is.
template <MomentFormat kFormat>
void update_packed_row(const AdamwArgs& args, int64_t row, const float* g, AdamwRow* result) {
  const int64_t K = args.K;
  const Draw draw{args.seed, args.parameter, args.step};
  uint8_t *m_scales = args.m.scales + row * (K / 16), *v_scales = args.v.scales + row * (K / 16);
  const PackedRow constants = packed_row(args, args.v.rows[row], args.m.rows[row]);
  const bool fresh = v_scales[0] == 0;
  CentreSum sum;
  if (fresh) sum = fresh_sum(constants, g, K);
  const float centre = sum.live > 0 ? fresh_centre(sum.eighths, sum.live) : 0.0f;
  const bool stores = !fresh || sum.live > 0;
  alignas(64) uint32_t words[kTile + 16], m[kTile], v[kTile];
  alignas(64) float u[kTile];
  for (int64_t column = 0; column < K; column += kTile) {
    const int64_t n = tile_columns(K, column), at = row * K + column;
    fill_words<7>(words, draw, RandomStream::kPacked, at, n);
    load_codes<kFormat>(m, args.m, at, n);
    load_codes<kFormat>(v, args.v, at, n);
    for (int64_t b = 0; b < n / 16; ++b) {
      const int64_t block = column / 16 + b;
      const BlockDraws draws(words + 16 * b);
      const float* from = g + 16 * block;
      if (!fresh) {
        if (args.b != 0) add_block<kFormat>(sum, v + 16 * b, e4m3_value(v_scales[block]));
        step_packed_moments<kFormat>(constants, m + 16 * b, m_scales[block], v + 16 * b, v_scales[block], from,
                                     u + 16 * b, draws.first, draws.second);
        continue;
      }
      alignas(64) float fresh_m[16], fresh_v[16];
      QN_BLOCK_LOOP(i) {
        const FreshElement e = fresh_element(constants, from[i]);
        fresh_m[i] = e.m;
        fresh_v[i] = e.v;
        u[16 * b + i] = e.u;
      }
      if (!stores) continue;
      store_fresh<kFormat>(m + 16 * b, m_scales[block], v + 16 * b, v_scales[block], centre, fresh_m, fresh_v,
                           draws.first, draws.second);
    }
    if (stores) {
      store_codes<kFormat>(args.m, m, at, n);
      store_codes<kFormat>(args.v, v, at, n);
    }
    result->update_squares += row_squares(u, n);
    if (args.storage == Storage::kNvfp4) {
      step_nvfp4(args, row, column, n, u, words, result);
    } else {
      step_dense(args, row, column, n, u, words);
    }
  }
  if (!stores) return;
  args.m.rows[row] = kMomentLevel;
  if (fresh) {
    args.v.rows[row] = centre;
  } else if (args.b != 0) {
    args.v.rows[row] = next_row(constants, sum.eighths, sum.live);
  }
}

// --- The row --------------------------------------------------------------------------------------------------------

void update_plain_row(const AdamwArgs& args, int64_t row, const float* g, float* scratch, AdamwRow* result) {
  const int64_t K = args.K, padded = (K + 15) / 16 * 16;
  const Draw draw{args.seed, args.parameter, args.step};
  float *m = scratch, *v = scratch + padded;
  alignas(64) float u[kTile];
  alignas(64) uint32_t words[kTile + 16];
  for (int64_t column = 0; column < K; column += kTile) {
    const int64_t n = tile_columns(K, column);
    load_linear(m + column, args.moments, args.m, row, column, n, K);
    load_linear(v + column, args.moments, args.v, row, column, n, K);
    moments_step(m + column, v + column, u, g + column, n, args);
    result->update_squares += row_squares(u, n);
    if (args.storage == Storage::kNvfp4) {
      fill_words<7>(words, draw, RandomStream::kPacked, row * K + column, n);
      step_nvfp4(args, row, column, n, u, words, result);
    } else {
      step_dense(args, row, column, n, u, words);
    }
  }
  store_linear(args.moments, args.v, draw, RandomStream::kSecondMoment, row, v, K);
  store_linear(args.moments, args.m, draw, RandomStream::kFirstMoment, row, m, K);
}

void update_row(const AdamwArgs& args, int64_t row, float* scratch, AdamwRow* result) {
  const float* g = args.g + (row - args.row_begin) * args.K;
  *result = {};
  if (args.moments == MomentFormat::kNvfp4) {
    update_packed_row<MomentFormat::kNvfp4>(args, row, g, result);
  } else if (args.moments == MomentFormat::kInt8) {
    update_packed_row<MomentFormat::kInt8>(args, row, g, result);
  } else {
    update_plain_row(args, row, g, scratch, result);
  }
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
