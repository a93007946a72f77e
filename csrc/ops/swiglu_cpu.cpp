#include <cmath>

#include "ops/swiglu.h"
#include "ops/swiglu_kernels.h"

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

struct Kernels {
  decltype(&swiglu_portable) forward = swiglu_portable;
  decltype(&swiglu_backward_portable) backward = swiglu_backward_portable;
};

Kernels kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return {swiglu_avx512, swiglu_backward_avx512};
  if (isa == Isa::kAvx2) return {swiglu_avx2, swiglu_backward_avx2};
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return {swiglu_neon, swiglu_backward_neon};
#endif
  return {};
}

}  // namespace

void swiglu_cpu(float* y, const float* gate, const float* up, int64_t count, const Cpu& cpu) {
  const auto kernel = kernels_for(cpu.isa).forward;
  cpu.pool.run(count, kPieceElements,
               [&](int64_t begin, int64_t end, int) { kernel(y + begin, gate + begin, up + begin, end - begin); });
}

void swiglu_backward_cpu(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count,
                         const Cpu& cpu) {
  const auto kernel = kernels_for(cpu.isa).backward;
  cpu.pool.run(count, kPieceElements, [&](int64_t begin, int64_t end, int) {
    kernel(dgate + begin, dup + begin, dy + begin, gate + begin, up + begin, end - begin);
  });
}

}  // namespace qn
