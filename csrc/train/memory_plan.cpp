#include "train/memory_plan.h"

#include <algorithm>
#include <string>

#include "model/engine_scratch.h"
#include "train/tape_state.h"

namespace qn {

namespace {

int64_t backward_bytes(const ModelConfig& config, int64_t N, int64_t lowest, int64_t activation_bytes) {
  ArenaPlan arena;
  take_backward(arena, config, N, lowest, activation_bytes);
  return arena.bytes();
}

// Throws unless `bytes` are free. `what` has the tokens; `remedies` come after "take fewer tokens at once".
void require(Device& device, int64_t bytes, const std::string& what, const std::string& remedies) {
  const auto shortage = device.shortage(bytes);
  if (!shortage) return;
  fail(Code::kOutOfMemory,
       "out of memory: %s needs %lld bytes and %lld of %lld bytes of the GPU are free: take fewer tokens at once%s",
       what.c_str(), (long long)bytes, (long long)shortage->free, (long long)shortage->total, remedies.c_str());
}

std::string described(const char* what, int64_t B, int64_t T) {
  return std::string(what) + " of " + std::to_string(B) + " x " + std::to_string(T) + " tokens";
}

// Recompute::kAll as a remedy, by what it saves of a tape.
std::string recompute_remedy(const ModelConfig& config, const TapeArgs& args, int64_t lowest,
                             int64_t activation_bytes) {
  if (args.recompute == Recompute::kAll) return "";
  const auto tape = [&](Recompute recompute) {
    return plan_tape(config, args.B * args.T, recompute, lowest, activation_bytes).activations;
  };
  const int64_t saved = tape(args.recompute) - tape(Recompute::kAll);
  return ", or recompute 'all', which saves " + std::to_string(saved) + " bytes";
}

}  // namespace

ActivationPlan plan_tape(const ModelConfig& config, int64_t N, Recompute recompute, int64_t lowest,
                         int64_t activation_bytes) {
  ArenaPlan arena;
  take_tape(arena, config, N, recompute, lowest, activation_bytes);
  return {arena.bytes(), N * head_chunk_rows(N, config.V, activation_bytes) * activation_bytes};
}

ActivationPlan plan_training(const ModelConfig& config, int64_t N, Recompute recompute, int64_t lowest,
                             int64_t activation_bytes) {
  ActivationPlan plan = plan_tape(config, N, recompute, lowest, activation_bytes);
  plan.activations += backward_bytes(config, N, lowest, activation_bytes);
  return plan;
}

void require_tape_memory(Model& model, const TapeArgs& args) {
  if (!model.device().cuda()) return;
  const ModelConfig& c = model.config();
  const int64_t each = activation_bytes(true), N = args.B * args.T, lowest = lowest_kept_layer(model, args);
  const ActivationPlan plan = plan_tape(c, N, args.recompute, lowest, each);
  const int64_t engine = engine_scratch(model, head_chunk_rows(N, c.V, each)).forward();
  require(model.device(), plan.activations + plan.scratch + engine + args.result_bytes,
          described("a forward pass with gradients", args.B, args.T), recompute_remedy(c, args, lowest, each));
}

void require_step_memory(Model& model, const PackedAdamW& optimizer, const TapeArgs& args) {
  if (!model.device().cuda()) return;
  const ModelConfig& c = model.config();
  const int64_t each = activation_bytes(true), N = args.B * args.T, lowest = lowest_kept_layer(model, args);
  const ActivationPlan plan = plan_training(c, N, args.recompute, lowest, each);
  const int64_t engine = engine_scratch(model, head_chunk_rows(N, c.V, each)).backward(c, N);
  std::string remedies = recompute_remedy(c, args, lowest, each);
  AdamwOptions smaller = optimizer.options();
  smaller.step_chunk_rows = std::min<int64_t>(smaller.step_chunk_rows, 1024);
  const auto rows = [&](const AdamwOptions& options) {
    return PackedAdamW::scratch_bytes(model.parameters(), options, true);
  };
  if (const int64_t saved = rows(optimizer.options()) - rows(smaller); saved > 0) {
    remedies += ", or stepChunkRows 1024, which saves " + std::to_string(saved) + " bytes";
  }
  require(model.device(), plan.activations + plan.scratch + engine + optimizer.missing_scratch_bytes(true),
          described("a training step", args.B, args.T), remedies);
}

void require_backward_memory(const Tape& tape, bool caller_dlogits, const GradientStore& gradients) {
  Model& model = tape.model;
  if (!model.device().cuda()) return;
  const ModelConfig& c = model.config();
  const int64_t N = tape.N();
  // A caller's gradient of the logits is there in f32 and in the form of activations.
  const int64_t logits =
      caller_dlogits ? N * c.V * (4 + tape.activation_bytes) : N * tape.head_chunk() * tape.activation_bytes;
  const int64_t head_rows = caller_dlogits ? c.V : tape.head_chunk();
  const int64_t bytes = backward_bytes(c, N, tape.lowest, tape.activation_bytes) + logits +
                        engine_scratch(model, head_rows).backward(c, N) + gradients.missing_bytes();
  require(model.device(), bytes, described("a backward pass", tape.B, tape.T),
          gradients.missing_bytes() > 0 ? ", or gradients in 'nvfp4', or trainStep, which stores none" : "");
}

}  // namespace qn
