#include <cmath>

#include "ops/swiglu.h"

namespace qn {

namespace {

constexpr int64_t kPieceElements = 1 << 13;

// e^−z may overflow to infinity for z < −88: σ is then 0 and the product −0, which is the limit.
float sigmoid(float z) { return 1.0f / (1.0f + std::exp(-z)); }

void swiglu_portable(float* y, const float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

void swiglu_backward_portable(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                              int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float z = gate[i], u = up[i], s = sigmoid(z);
    dgate[i] = dy[i] * u * (s * (1.0f + z * (1.0f - s)));
    dup[i] = dy[i] * (z * s);
  }
}

}  // namespace

void swiglu_cpu(float* y, const float* gate, const float* up, int64_t count, const Cpu& cpu) {
  cpu.pool.run(count, kPieceElements, [&](int64_t begin, int64_t end, int) {
    swiglu_portable(y + begin, gate + begin, up + begin, end - begin);
  });
}

void swiglu_backward_cpu(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count,
                         const Cpu& cpu) {
  cpu.pool.run(count, kPieceElements, [&](int64_t begin, int64_t end, int) {
    swiglu_backward_portable(dgate + begin, dup + begin, dy + begin, gate + begin, up + begin, end - begin);
  });
}

}  // namespace qn
