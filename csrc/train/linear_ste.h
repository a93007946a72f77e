// One linear layer whose weight is seen through NVFP4, with straight-through gradients.
//
//   forward   y[T, N]  = x[T, K] · Q(w)ᵀ
//   backward  dx[T, K] = dy[T, N] · Q(w)          the declared surrogate: quantisation counts as the identity,
//             dw[N, K] = dyᵀ · x                  so dw is the gradient of the unquantised w
// x, dy, y, dx and dw are f32 of the host. The products are those of the device's engine: on CUDA x and dy round to
// bf16 first, and dx once more at the end; y and dw are f32 sums. K % 16 == 0.
#pragma once

#include "format/nvfp4.h"
#include "model/engine.h"

namespace qn {

// Q(w) of the host's values, on the device. Quantised on the host, so that every device has the same bytes.
class QuantizedMatrix {
 public:
  QuantizedMatrix(Device& device, const float* w, int64_t N, int64_t K, bool two_level, ScaleRule rule, const Cpu& cpu);
  WeightView view() const;

 private:
  int64_t N_, K_;
  Buffer codes_, scales_;
  float global_scale_ = 1.0f;
};

void linear_ste(Engine& engine, float* y, const float* x, const WeightView& quantized, int64_t T);
void linear_ste_backward(Engine& engine, float* dx, float* dw, const float* dy, const float* x,
                         const WeightView& quantized, int64_t T);

}  // namespace qn
