#include "model/engine.h"

namespace qn {

std::unique_ptr<Engine> make_engine(Device& device, const Cpu& cpu, Compute compute) {
  return device.cuda() ? make_cuda_engine(device, cpu, compute) : make_cpu_engine(device, cpu);
}

}  // namespace qn
