// A model with what training hangs on it. Shared by the JavaScript objects made from it, which keep it in memory but
// refuse to work once it is disposed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "binding/external_memory.h"
#include "model/model.h"
#include "train/gradient_store.h"

namespace qn {

struct ModelState {
  ModelState(std::shared_ptr<Device> device, const ModelConfig& config, Compute compute)
      : model(std::move(device), config, compute) {}

  // JS thread.
  void require_alive(const char* object) const {
    if (disposed) fail(Code::kDisposed, "%s belongs to a model that was disposed", object);
  }
  const std::shared_ptr<Device>& device() const { return model.shared_device(); }

  // On the lane. The parameter of a name, or Error(kInvalidArgument).
  Parameter& parameter(const std::string& name) {
    Parameter* found = model.find(name);
    if (!found) fail(Code::kInvalidArgument, "Expected the name of a parameter but received '%s'", name.c_str());
    return *found;
  }

  // On the lane. The store of gradients in this form; another form is refused while sums are kept.
  GradientStore& gradient_store(GradientStore::Options options) {
    if (resumed_seed) options.seed = *resumed_seed;
    if (gradients && gradients->micro_batches() > 0) {
      if (gradient_options.format != options.format) {
        fail(Code::kInvalidArgument, "gradients are already being summed in another form; step or zeroGrad first");
      }
      return *gradients;
    }
    if (!gradients || gradient_options.format != options.format || gradient_options.allow_many != options.allow_many ||
        gradient_options.seed != options.seed) {
      gradients = std::make_unique<GradientStore>(model, options);
      gradient_options = options;
    }
    zero_gradients();
    return *gradients;
  }

  // On the lane. The next sums draw the random bits of the optimizer's next step, whenever their store was made.
  void zero_gradients() {
    if (gradients) gradients->zero(optimizer_steps);
  }

  Model model;
  // JS thread only.
  bool disposed = false;
  ExternalMemory external;  // weights and scales
  // Lane only.
  std::unique_ptr<GradientStore> gradients;
  GradientStore::Options gradient_options;
  int64_t optimizer_steps = 0;           // taken by the last optimizer that stepped or was loaded
  std::optional<uint64_t> resumed_seed;  // of a loaded optimizer state: takes the place of the option
};

}  // namespace qn
