// f32 values of the host as activations: themselves on the CPU, else a copy on the device, rounded to bf16.
#pragma once

#include "model/engine.h"

namespace qn {

class HostActivations {
 public:
  // On the CPU `values` must outlive this.
  HostActivations(Engine& engine, const float* values, int64_t count)
      : x_(reinterpret_cast<const Activation*>(values)) {
    Device& device = engine.device();
    if (!device.cuda()) return;
    const Buffer wide(device.ledger(), MemoryKind::kScratch, count * 4);
    copy_ = Buffer(device.ledger(), MemoryKind::kScratch, count * engine.activation_bytes());
    device.copy_in(wide.data(), values, count * 4);
    engine.narrow(copy_.as<Activation>(), wide.as<float>(), count);
    x_ = copy_.as<Activation>();
  }
  const Activation* get() const { return x_; }

 private:
  Buffer copy_;
  const Activation* x_;
};

}  // namespace qn
