#include "train/linear_ste.h"

#include "core/host_bytes.h"
#include "model/host_activations.h"
#include "ops/quantize.h"

namespace qn {

namespace {

// f32 values that operations write and deliver() hands to the host: in its own memory on the CPU.
class Output {
 public:
  Output(Engine& engine, float* values, int64_t count) : engine_(engine), host_(values), count_(count) {
    if (engine.device().cuda()) copy_ = Buffer(engine.device().ledger(), MemoryKind::kScratch, count * 4);
  }
  float* get() const { return copy_ ? copy_.as<float>() : host_; }
  void deliver() {
    if (copy_) engine_.download(host_, copy_.as<float>(), count_);
  }

 private:
  Engine& engine_;
  float* host_;
  int64_t count_;
  Buffer copy_;
};

}  // namespace

QuantizedMatrix::QuantizedMatrix(Device& device, const float* w, int64_t N, int64_t K, bool two_level, ScaleRule rule,
                                 const Cpu& cpu)
    : N_(N),
      K_(K),
      codes_(device.ledger(), MemoryKind::kActivations, N * K / 2),
      scales_(device.ledger(), MemoryKind::kActivations, N * K / kBlockSize) {
  if (two_level) global_scale_ = two_level_global_scale(amax_cpu(w, N, K, cpu));
  HostBytes codes(device, codes_, HostBytes::Start::kUninitialised);
  HostBytes scales(device, scales_, HostBytes::Start::kUninitialised);
  quantize_nvfp4_cpu(
      {codes.as<uint8_t>(), scales.as<uint8_t>(), w, N, K, global_scale_, Rounding::kNearestEven, rule, {}}, cpu);
  codes.write_back();
  scales.write_back();
}

WeightView QuantizedMatrix::view() const {
  WeightView view;
  view.storage = Storage::kNvfp4;
  view.rows = N_;
  view.cols = K_;
  view.packed = {codes_.as<uint8_t>(), scales_.as<uint8_t>(), global_scale_};
  return view;
}

void linear_ste(Engine& engine, float* y, const float* x, const WeightView& quantized, int64_t T) {
  const HostActivations input(engine, x, T * quantized.cols);
  Output output(engine, y, T * quantized.rows);
  engine.logits(output.get(), input.get(), quantized, T, false);
  output.deliver();
}

void linear_ste_backward(Engine& engine, float* dx, float* dw, const float* dy, const float* x,
                         const WeightView& quantized, int64_t T) {
  const int64_t N = quantized.rows, K = quantized.cols;
  const HostActivations input(engine, x, T * K), gradient(engine, dy, T * N);
  Output weight(engine, dw, N * K);
  engine.linear_backward_weight({{weight.get()}, gradient.get(), input.get(), T, K, N, 0, N, false});
  weight.deliver();

  const Buffer narrow(engine.device().ledger(), MemoryKind::kScratch, T * K * engine.activation_bytes());
  engine.linear_backward_input(narrow.as<Activation>(), gradient.get(), quantized, T, false);
  Output wide(engine, dx, T * K);
  engine.widen(wide.get(), narrow.as<Activation>(), T * K);
  wide.deliver();
}

}  // namespace qn
