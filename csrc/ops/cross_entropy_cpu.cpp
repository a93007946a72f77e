#include <cmath>
#include <limits>

#include "ops/cross_entropy.h"
#include "ops/softmax_row.h"

namespace qn {

namespace {

// A piece is one row: a vocabulary chunk is thousands of exponentials.
constexpr int64_t kRowsPerPiece = 1;

void accumulate_row(const CrossEntropyState& state, const SoftmaxRow& row, const float* logits, int64_t t, int64_t C) {
  const float chunk_max = row.max(logits, C);
  const float max = state.max[t] > chunk_max ? state.max[t] : chunk_max;
  // Nothing but −inf (or NaN) so far: there is no maximum to subtract.
  const float shift = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
  const double carried = static_cast<double>(state.sum[t]) * std::exp(static_cast<double>(state.max[t]) - shift);
  state.sum[t] = static_cast<float>(carried + row.exp_sum(logits, C, shift));
  state.max[t] = max;
}

}  // namespace

void cross_entropy_accumulate_cpu(const CrossEntropyState& state, const float* logits, const int32_t* labels, int64_t T,
                                  int64_t C, int64_t begin, const Cpu& cpu) {
  const SoftmaxRow& kernels = softmax_row(cpu.isa);
  cpu.pool.run(T, kRowsPerPiece, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      accumulate_row(state, kernels, logits + t * C, t, C);
      const int64_t column = labels[t] - begin;
      if (labels[t] != kIgnoreLabel && column >= 0 && column < C) state.target_logit[t] = logits[t * C + column];
    }
  });
}

void cross_entropy_finish_cpu(float* lse, const CrossEntropyState& state, int64_t T) {
  for (int64_t t = 0; t < T; ++t) {
    lse[t] = static_cast<float>(state.max[t] + std::log(static_cast<double>(state.sum[t])));
  }
}

void cross_entropy_gradient_cpu(float* logits, const float* lse, const int32_t* labels, const float* weight, int64_t T,
                                int64_t C, int64_t begin, const Cpu& cpu) {
  const SoftmaxRow& kernels = softmax_row(cpu.isa);
  cpu.pool.run(T, kRowsPerPiece, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      float* row = logits + t * C;
      if (labels[t] == kIgnoreLabel) {
        for (int64_t v = 0; v < C; ++v) row[v] = 0.0f;
        continue;
      }
      const int64_t column = labels[t] - begin;
      const float target = column >= 0 && column < C ? row[column] : 0.0f;
      kernels.scale(row, C, lse[t], weight[t]);
      // The label's own element once more from its logit: p − 1 loses no bits to the product with the weight.
      if (column >= 0 && column < C) row[column] = std::expm1(target - lse[t]) * weight[t];
    }
  });
}

}  // namespace qn
