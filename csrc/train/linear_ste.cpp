#include "train/linear_ste.h"

#include "ops/linear.h"
#include "ops/quantize.h"

namespace qn {

QuantizedMatrix::QuantizedMatrix(Device& device, const float* w, int64_t N, int64_t K, bool two_level, ScaleRule rule,
                                 const Cpu& cpu)
    : N_(N),
      K_(K),
      codes_(device.ledger(), MemoryKind::kActivations, N * K / 2),
      scales_(device.ledger(), MemoryKind::kActivations, N * K / kBlockSize) {
  if (two_level) global_scale_ = two_level_global_scale(amax_cpu(w, N, K, cpu));
  quantize_nvfp4_cpu(
      {codes_.as<uint8_t>(), scales_.as<uint8_t>(), w, N, K, global_scale_, Rounding::kNearestEven, rule, {}}, cpu);
}

WeightView QuantizedMatrix::view() const {
  WeightView view;
  view.storage = Storage::kNvfp4;
  view.rows = N_;
  view.cols = K_;
  view.packed = {codes_.as<uint8_t>(), scales_.as<uint8_t>(), global_scale_};
  return view;
}

void linear_ste(float* y, const float* x, const WeightView& quantized, int64_t T, const Cpu& cpu) {
  linear_cpu(y, x, quantized, T, false, cpu);
}

void linear_ste_backward(float* dx, float* dw, const float* dy, const float* x, const WeightView& quantized, int64_t T,
                         const Cpu& cpu) {
  linear_backward_input_cpu(dx, dy, quantized, T, false, cpu);
  linear_backward_weight_cpu({dw, dy, x, T, quantized.rows, quantized.cols, 0, quantized.rows, false}, cpu);
}

}  // namespace qn
