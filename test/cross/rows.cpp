// Softmax rows and SwiGLU: e^x within 1 ulp on both sides, so results differ by a few.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "ops/softmax_row.h"
#include "ops/swiglu.h"

namespace qn::cross {

namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kCounts[] = {0, 1, 2, 3, 4, 5, 7, 8, 13, 64, 1001};

// In units of what f32 resolves: 1 for equal up to the last bit, 2^23 for a factor of two.
void check_ratio(const std::vector<float>& a, const std::vector<float>& b, float ulps, const std::string& name) {
  float worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const float size = std::fmax(std::fabs(b[i]), 0x1p-126f);  // subnormals are spaced like the smallest normals
    worst = std::fmax(worst, std::isfinite(a[i]) && std::isfinite(b[i]) ? std::fabs(a[i] - b[i]) / size : kInfinity);
  }
  check(worst <= ulps * 0x1p-23f, name + ": off by " + std::to_string(worst * 0x1p23f) + " ulps");
}

void check_softmax(const Levels& levels) {
  const SoftmaxRow &row = softmax_row(levels.one.isa), &truth = softmax_row(Isa::kPortable);
  for (const int64_t count : kCounts) {
    const std::string name = "softmax of " + std::to_string(count);
    std::vector<float> x = floats(count, 21, 20.0f), expected = x;
    const float max = truth.max(x.data(), count);
    check(row.max(x.data(), count) == max, "max, " + name);
    const double sum = row.exp_sum(x.data(), count, max), true_sum = truth.exp_sum(x.data(), count, max);
    check(std::fabs(sum - true_sum) <= 3e-7 * true_sum, "sum, " + name);
    row.scale(x.data(), count, 3.0f, 0.7f);
    truth.scale(expected.data(), count, 3.0f, 0.7f);
    check_ratio(x, expected, 4, "scale, " + name);
  }
  // A NaN at every place of a vector and of a tail: never the maximum, always in the sum.
  for (int64_t at = 0; at < 7; ++at) {
    std::vector<float> x = floats(7, 22);
    const float max = truth.max(x.data(), 7);
    x[at] = __builtin_nanf("");
    const float seen = row.max(x.data(), 7);
    check(seen == truth.max(x.data(), 7) && seen <= max, "max with a NaN at " + std::to_string(at));
    check(std::isnan(row.exp_sum(x.data(), 7, 0)), "sum with a NaN at " + std::to_string(at));
  }
}

// e^x over its whole range and past both ends is within 1 ulp of the exact value.
void check_exp(const Levels& levels) {
  const std::vector<float> ends = {0.0f,  -0.0f,   kInfinity, -kInfinity, __builtin_nanf(""),
                                   89.5f, -104.5f, 1e30f,     -1e30f};
  std::vector<float> x = ends;
  for (int64_t i = 0; i < 20000; ++i) x.push_back(-104.0f + 0.0096f * static_cast<float>(i));
  std::vector<float> y = x;
  softmax_row(levels.one.isa).scale(y.data(), static_cast<int64_t>(y.size()), 0, 1);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    if (i < ends.size()) {
      const auto nearest = static_cast<float>(exact);
      check(y[i] == nearest || (std::isnan(y[i]) && std::isnan(nearest)), "e^" + std::to_string(x[i]));
    } else if (exact < 0x1.fffffep+127) {
      worst = std::fmax(worst, std::fabs(y[i] - exact) / std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23));
    }
  }
  check(worst <= 1, "e^x is off by " + std::to_string(worst) + " ulps");
}

struct Swiglu {
  std::vector<float> y, dgate, dup;
};

Swiglu swiglu(int64_t count, const Cpu& cpu) {
  const std::vector<float> gate = floats(count, 31, 30.0f), up = floats(count, 32), dy = floats(count, 33);
  Swiglu out = {std::vector<float>(count), std::vector<float>(count), std::vector<float>(count)};
  swiglu_cpu(out.y.data(), gate.data(), up.data(), count, cpu);
  swiglu_backward_cpu(out.dgate.data(), out.dup.data(), dy.data(), gate.data(), up.data(), count, cpu);
  return out;
}

void check_swiglu(int64_t count, const Levels& levels) {
  const std::string name = "swiglu of " + std::to_string(count);
  const Swiglu a = swiglu(count, levels.one), b = swiglu(count, levels.portable), c = swiglu(count, levels.three);
  check_ratio(a.y, b.y, 8, "y, " + name);
  check_ratio(a.dup, b.dup, 8, "dup, " + name);
  check_close(a.dgate, b.dgate, 1e-6f, "dgate, " + name);  // crosses zero, where no ratio holds
  check_equal(a.y, c.y, "y on three threads, " + name);
  check_equal(a.dup, c.dup, "dup on three threads, " + name);
  check_equal(a.dgate, c.dgate, "dgate on three threads, " + name);
}

}  // namespace

void check_rows(const Levels& levels) {
  check_softmax(levels);
  check_exp(levels);
  for (const int64_t count : kCounts) check_swiglu(count, levels);
  check_swiglu(20001, levels);  // three pieces
}

}  // namespace qn::cross
