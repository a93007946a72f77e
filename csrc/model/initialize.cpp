#include <cmath>
#include <vector>

#include "core/status.h"
#include "format/nvfp4.h"
#include "model/model.h"
#include "ops/initialize.h"
#include "ops/normal.h"

namespace qn {

namespace {

void allocate(Parameter& parameter, const InitializeOptions& options, MemoryLedger& ledger) {
  const bool packs = !parameter.is_vector && parameter.cols % kBlockSize == 0;
  const Storage matrix = options.storage == Storage::kNvfp4 && !packs ? Storage::kF32 : options.storage;
  parameter.allocate(ledger, parameter.is_vector ? Storage::kF32 : matrix);
  if (parameter.storage != Storage::kNvfp4) return;
  // From the largest draw there can be, so that one pass does: nothing saturates, and every scale is far from the
  // subnormal ones.
  parameter.two_level = options.two_level;
  parameter.global_scale = options.two_level ? two_level_global_scale(options.stddev * kLargestNormal) : 1.0f;
}

void fill_ones(Parameter& parameter, Device& device) {
  const std::vector<float> ones(static_cast<size_t>(parameter.count()), 1.0f);
  device.copy_in(parameter.dense.data(), ones.data(), parameter.dense.bytes());
}

void fill_normal(Parameter& parameter, const InitializeOptions& options, Device& device, const Cpu& cpu) {
  const InitializeArgs args{parameter.storage,
                            parameter.dense.data(),
                            parameter.codes.as<uint8_t>(),
                            parameter.scales.as<uint8_t>(),
                            parameter.global_scale,
                            parameter.count(),
                            options.seed,
                            parameter.id,
                            static_cast<double>(options.stddev)};
#if defined(QN_WITH_CUDA)
  if (CudaContext* cuda = device.cuda()) return initialize_normal_cuda(args, cuda->stream());
#endif
  initialize_normal_cpu(args, cpu);
}

}  // namespace

void initialize_model(Model& model, const InitializeOptions& options, const Cpu& cpu) {
  if (!(options.stddev > 0) || !std::isfinite(options.stddev)) {
    fail(Code::kInvalidArgument, "the standard deviation of the weights is %g", static_cast<double>(options.stddev));
  }
  if (options.storage == Storage::kBnb4) fail(Code::kInvalidArgument, "random weights are NVFP4 or dense");
  require_compute(model);
  Device& device = model.device();
  // All of it first, so that a model that does not fit says so at once.
  for (Parameter& parameter : model.parameters()) {
    cpu.check_cancelled();
    allocate(parameter, options, device.ledger());
  }
  for (Parameter& parameter : model.parameters()) {
    cpu.check_cancelled();
    parameter.is_vector ? fill_ones(parameter, device) : fill_normal(parameter, options, device, cpu);
  }
  model.mark_changed();
}

}  // namespace qn
