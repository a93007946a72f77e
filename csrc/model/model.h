// A Qwen3 decoder with its parameters, on one device. Everything below runs on the device's lane.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "core/device.h"
#include "model/compute.h"
#include "model/config.h"
#include "model/parameter.h"

namespace qn {

struct LayerParameters {
  Parameter *input_norm, *q_proj, *k_proj, *v_proj, *q_norm, *k_norm, *o_proj, *post_norm, *gate_proj, *up_proj,
      *down_proj;
};

class Model {
 public:
  // Parameters exist with their shapes but hold no memory: load.h or initialize_model() fills them.
  Model(std::shared_ptr<Device> device, const ModelConfig& config, Compute compute = Compute::kW4A16);

  Device& device() { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }
  const ModelConfig& config() const { return config_; }
  Compute compute() const { return compute_; }
  std::deque<Parameter>& parameters() { return parameters_; }
  // nullptr when there is none of that name.
  Parameter* find(const std::string& name);
  int64_t parameter_count() const;

  Parameter& embedding() { return *embedding_; }
  Parameter& final_norm() { return *final_norm_; }
  Parameter& head() { return *head_; }  // the embedding when tied
  LayerParameters& layer(int64_t index) { return layers_[static_cast<size_t>(index)]; }

  // Bytes per kind held by this model's own tensors (weights, scales, dense parameters).
  struct Bytes {
    int64_t weights = 0, scales = 0;
  };
  Bytes bytes() const;

  // Counts weight changes, so that a backward pass can tell that its forward pass is stale.
  uint64_t version() const { return version_; }
  void mark_changed() { ++version_; }

  // Frees every parameter. Later use is refused by the binding.
  void release();

 private:
  std::shared_ptr<Device> device_;
  ModelConfig config_;
  Compute compute_;
  std::deque<Parameter> parameters_;
  std::vector<LayerParameters> layers_;
  Parameter *embedding_ = nullptr, *final_norm_ = nullptr, *head_ = nullptr;
  uint64_t version_ = 0;
};

struct InitializeOptions {
  uint64_t seed = 0;
  float stddev = 0.02f;               // of embeddings and projections; norms are 1
  Storage storage = Storage::kNvfp4;  // of matrices with cols % 16 == 0
  bool two_level = true;
};
// Normal(0, stddev) weights, quantised to `storage`. The same seed gives the same bytes on every machine. Throws as
// require_compute() does.
void initialize_model(Model& model, const InitializeOptions& options, const Cpu& cpu);

}  // namespace qn
