#include "model/compute.h"

#include "core/status.h"
#include "model/model.h"
#include "ops/linear_w4a4.h"

namespace qn {

namespace {
constexpr int kFirstFp4Capability = 100;  // Blackwell
}

void require_compute(Model& model) {
  if (model.compute() == Compute::kW4A16) return;
  const char* needed =
      "compute 'w4a4' needs a GPU of compute capability 10.0 or newer (Blackwell), whose tensor cores multiply FP4";
  const CudaContext* cuda = model.device().cuda();
  if (!cuda) fail(Code::kUnsupported, "%s, and this model is on the CPU; use 'w4a16'", needed);
  if (const int capability = cuda->capability(); capability < kFirstFp4Capability) {
    fail(Code::kUnsupported, "%s, and cuda:%d, %s, has %d.%d; use 'w4a16'", needed, cuda->index(), cuda->name().c_str(),
         capability / 10, capability % 10);
  }
  for (const Parameter& parameter : model.parameters()) {
    const bool multiplied = !parameter.is_vector && (&parameter != &model.embedding() || model.config().tied);
    if (multiplied) require_w4a4_shape(parameter.name.c_str(), parameter.rows, parameter.cols);
  }
}

}  // namespace qn
