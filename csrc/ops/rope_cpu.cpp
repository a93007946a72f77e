#include <cmath>

#include "ops/rope.h"

namespace qn {

namespace {

constexpr int64_t kPositionsPerPiece = 8;

void rotate(float* x, const float* cosines, const float* sines, int64_t half, float sign) {
  float *low = x, *high = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = low[i], b = high[i], c = cosines[i], s = sign * sines[i];
    low[i] = a * c - b * s;
    high[i] = b * c + a * s;
  }
}

}  // namespace

// The f32 steps of transformers' Qwen3RotaryEmbedding are kept, because an angle of 2^17 radians has an f32 spacing of
// 2^-6: a "more exact" angle would rotate long contexts differently from the trained model. Only pow, cos and sin
// themselves are evaluated in double and rounded.
void rope_table_cpu(float* cosines, float* sines, const int32_t* positions, int64_t T, int64_t D, double base,
                    const Cpu& cpu) {
  const int64_t half = D / 2;
  const auto base_f32 = static_cast<float>(base);
  cpu.pool.run(T, kPositionsPerPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = 0; i < half; ++i) {
      const float exponent = static_cast<float>(2 * i) / static_cast<float>(D);
      const float inverse_frequency =
          1.0f / static_cast<float>(std::pow(static_cast<double>(base_f32), static_cast<double>(exponent)));
      for (int64_t t = begin; t < end; ++t) {
        const float angle = static_cast<float>(positions[t]) * inverse_frequency;
        cosines[t * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sines[t * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
}

void rope_cpu(float* x, const float* cosines, const float* sines, int64_t T, int64_t heads, int64_t D, bool inverse,
              const Cpu& cpu) {
  const int64_t half = D / 2;
  const float sign = inverse ? -1.0f : 1.0f;
  cpu.pool.run(T, kPositionsPerPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < heads; ++head) {
        rotate(x + (t * heads + head) * D, cosines + t * half, sines + t * half, half, sign);
      }
    }
  });
}

}  // namespace qn
