#include "core/status.h"
#include "model/engine.h"

namespace qn {

std::unique_ptr<Engine> make_cuda_engine(Device&, const Cpu&) {
  fail(Code::kUnsupported, "the model does not run on CUDA yet in this version; use device 'cpu'");
}

}  // namespace qn
