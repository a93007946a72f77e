#include <algorithm>
#include <cmath>

#include "ops/rms_norm.h"

namespace qn {

namespace {

// Elements of one piece of work: small enough to share a short prompt, large enough to hide the hand-out.
constexpr int64_t kPieceElements = 1 << 14;
constexpr int64_t kColumnBlock = 64;

// Σ f(h) for h in [0, H) in eight fixed lanes: one double adder after another would wait four cycles an element.
template <typename Term>
double lane_sum(int64_t H, Term&& term) {
  double lanes[8] = {};
  int64_t h = 0;
  for (; h + 8 <= H; h += 8) {
    for (int64_t j = 0; j < 8; ++j) lanes[j] += term(h + j);
  }
  for (; h < H; ++h) lanes[h % 8] += term(h);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

void normalise_row(float* y, float* inv_rms, const float* x, const float* w, int64_t H, float eps) {
  const double sum = lane_sum(H, [&](int64_t h) { return static_cast<double>(x[h]) * x[h]; });
  const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(H) + eps);
  for (int64_t h = 0; h < H; ++h) y[h] = static_cast<float>(x[h] * inverse * w[h]);
  if (inv_rms) *inv_rms = static_cast<float>(inverse);
}

void input_gradient_row(const RmsNormBackward& a, int64_t t) {
  const float *x = a.x + t * a.H, *dy = a.dy + t * a.H;
  float* dx = a.dx + t * a.H;
  const double inverse = a.inv_rms[t];
  const double dot = lane_sum(a.H, [&](int64_t h) { return static_cast<double>(a.w[h]) * dy[h] * (x[h] * inverse); });
  const double mean = dot / static_cast<double>(a.H);
  for (int64_t h = 0; h < a.H; ++h) {
    const double n = x[h] * inverse;
    dx[h] = static_cast<float>(dx[h] + inverse * (static_cast<double>(a.w[h]) * dy[h] - n * mean));
  }
}

void weight_gradient_columns(const RmsNormBackward& a, int64_t begin, int64_t end) {
  double sums[kColumnBlock] = {};
  for (int64_t t = 0; t < a.T; ++t) {
    const float *x = a.x + t * a.H, *dy = a.dy + t * a.H;
    const double inverse = a.inv_rms[t];
    for (int64_t h = begin; h < end; ++h) sums[h - begin] += dy[h] * (x[h] * inverse);
  }
  for (int64_t h = begin; h < end; ++h) a.dw[h] = static_cast<float>(a.dw[h] + sums[h - begin]);
}

}  // namespace

void rms_norm_cpu(float* y, float* inv_rms, const float* x, const float* w, int64_t T, int64_t H, float eps,
                  const Cpu& cpu) {
  cpu.pool.run(T, std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, H)), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      normalise_row(y + t * H, inv_rms ? inv_rms + t : nullptr, x + t * H, w, H, eps);
    }
  });
}

void rms_norm_backward_cpu(const RmsNormBackward& args, const Cpu& cpu) {
  cpu.pool.run(args.T, std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, args.H)),
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t t = begin; t < end; ++t) input_gradient_row(args, t);
               });
  if (!args.dw) return;
  cpu.pool.run(args.H, kColumnBlock,
               [&](int64_t begin, int64_t end, int) { weight_gradient_columns(args, begin, end); });
}

}  // namespace qn
