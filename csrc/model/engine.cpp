#include "model/engine.h"

namespace qn {

std::unique_ptr<Engine> make_engine(Device& device, const Cpu& cpu) {
  return device.cuda() ? make_cuda_engine(device, cpu) : make_cpu_engine(device, cpu);
}

}  // namespace qn
