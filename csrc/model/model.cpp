#include "model/model.h"

#include <utility>

namespace qn {

Model::Model(std::shared_ptr<Device> device, const ModelConfig& config, Compute compute)
    : device_(std::move(device)), config_(config), compute_(compute) {
  for (const ParameterSpec& spec : parameter_specs(config)) {
    Parameter& parameter = parameters_.emplace_back();
    parameter.name = spec.name;
    parameter.id = static_cast<uint32_t>(parameters_.size() - 1);
    parameter.rows = spec.rows;
    parameter.cols = spec.cols;
    parameter.is_vector = spec.is_vector;
  }
  // The order of parameter_specs(), read back in one walk.
  auto next = parameters_.begin();
  const auto take = [&] { return &*next++; };
  embedding_ = take();
  for (int64_t i = 0; i < config.L; ++i) {
    LayerParameters& p = layers_.emplace_back();
    for (Parameter** slot : {&p.input_norm, &p.q_proj, &p.k_proj, &p.v_proj, &p.q_norm, &p.k_norm, &p.o_proj,
                             &p.post_norm, &p.gate_proj, &p.up_proj, &p.down_proj}) {
      *slot = take();
    }
  }
  final_norm_ = take();
  head_ = config.tied ? embedding_ : take();
}

Parameter* Model::find(const std::string& name) {
  for (Parameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.count();
  return count;
}

Model::Bytes Model::bytes() const {
  Bytes bytes;
  for (const Parameter& p : parameters_) {
    bytes.weights += p.dense.bytes() + p.codes.bytes() + p.residual_codes.bytes();
    bytes.scales += p.scales.bytes() + p.residual_scales.bytes();
  }
  return bytes;
}

void Model::release() {
  for (Parameter& parameter : parameters_) parameter.release();
}

}  // namespace qn
