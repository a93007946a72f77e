// One linear layer whose weight is seen through NVFP4, with straight-through gradients.
//
//   forward   y[T, N]  = x[T, K] · Q(w)ᵀ
//   backward  dx[T, K] = dy[T, N] · Q(w)          the declared surrogate: quantisation counts as the identity,
//             dw[N, K] = dyᵀ · x                  so dw is the gradient of the unquantised w
// K % 16 == 0.
#pragma once

#include <vector>

#include "core/device.h"
#include "format/nvfp4.h"
#include "ops/weight_view.h"

namespace qn {

// Q(w) of values that the caller owns, on the device.
class QuantizedMatrix {
 public:
  QuantizedMatrix(Device& device, const float* w, int64_t N, int64_t K, bool two_level, ScaleRule rule, const Cpu& cpu);
  WeightView view() const;

 private:
  int64_t N_, K_;
  Buffer codes_, scales_;
  float global_scale_ = 1.0f;
};

void linear_ste(float* y, const float* x, const WeightView& quantized, int64_t T, const Cpu& cpu);
void linear_ste_backward(float* dx, float* dw, const float* dy, const float* x, const WeightView& quantized, int64_t T,
                         const Cpu& cpu);

}  // namespace qn
