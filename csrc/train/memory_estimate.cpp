#include "train/memory_estimate.h"

#include <algorithm>
#include <deque>
#include <unordered_set>

#include "format/nvfp4.h"
#include "model/engine_scratch.h"
#include "model/kv_cache.h"
#include "train/tape_state.h"

namespace qn {

namespace {

int64_t& of(MemoryBytes& bytes, MemoryKind kind) { return bytes[static_cast<size_t>(kind)]; }

// As Parameter::allocate() stores it: vectors and matrices not divisible into blocks stay dense.
Storage stored_form(const ParameterSpec& spec, Storage wanted) {
  const int64_t block = wanted == Storage::kNvfp4 ? kBlockSize : wanted == Storage::kBnb4 ? kBnb4BlockSize : 1;
  return spec.is_vector || spec.cols % block != 0 ? Storage::kF32 : wanted;
}

int64_t dense_bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

std::deque<Parameter> shapes(const ModelConfig& config, Storage weights, const std::vector<std::string>& frozen_names) {
  const std::unordered_set<std::string> frozen(frozen_names.begin(), frozen_names.end());
  std::deque<Parameter> parameters;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    Parameter& parameter = parameters.emplace_back();
    parameter.id = static_cast<uint32_t>(parameters.size() - 1);
    parameter.rows = spec.rows;
    parameter.cols = spec.cols;
    parameter.is_vector = spec.is_vector;
    const bool projection = spec.name.find("_proj.") != std::string::npos;
    // bitsandbytes leaves embedding and head as they are: bf16, as a rule.
    parameter.storage = stored_form(spec, weights == Storage::kBnb4 && !projection ? Storage::kBF16 : weights);
    parameter.trainable = frozen.count(spec.name) == 0 && parameter.storage != Storage::kBnb4;
  }
  return parameters;
}

// The scratch of the engine on CUDA, or of the threads.
int64_t engine_bytes(const ModelConfig& config, const MemoryPlanArgs& args, const std::deque<Parameter>& parameters) {
  if (!args.cuda) return (args.threads > 0 ? args.threads : available_cores()) * kWorkerScratchBytes;
  const int64_t N = args.B * args.T;
  const int64_t head_rows =
      args.training ? head_chunk_rows(N, config.V, activation_bytes(true))
                    : decoded_head_rows(config, parameters[config.tied ? 0 : parameters.size() - 1].storage, args.B);
  const bool residual = args.training && args.optimizer.weights == WeightMode::kNvfp4Residual;
  EngineScratch scratch;
  for (const Parameter& parameter : parameters) {
    const bool embedding = parameter.id == 0, head = config.tied ? embedding : &parameter == &parameters.back();
    if (parameter.is_vector || (embedding && !head)) continue;
    scratch.see(parameter, head ? head_rows : parameter.rows, residual);
  }
  return args.training ? scratch.backward(config, N) : scratch.forward();
}

}  // namespace

MemoryBytes estimate_memory(const ModelConfig& config, const MemoryPlanArgs& args) {
  MemoryBytes bytes{};
  int64_t summing = 0;
  const std::deque<Parameter> parameters = shapes(config, args.weights, args.frozen);
  for (const Parameter& parameter : parameters) {
    const int64_t count = parameter.count();
    if (is_packed(parameter.storage)) {
      of(bytes, MemoryKind::kWeights) += count / 2;
      of(bytes, MemoryKind::kScales) += count / kBlockSize;
    } else {
      of(bytes, MemoryKind::kWeights) += count * dense_bytes(parameter.storage);
    }
    if (!args.training || !parameter.trainable) continue;
    of(bytes, MemoryKind::kMoments) += PackedAdamW::state_bytes(parameter, args.optimizer);
    if (args.keep_gradients) {
      of(bytes, MemoryKind::kGradients) += GradientStore::bytes_of(parameter, args.gradients);
      summing = std::max(summing, GradientStore::scratch_bytes(parameter, {args.gradients}));
    }
  }

  const int64_t bytes_each = activation_bytes(args.cuda);
  const ActivationPlan activations =
      args.training
          ? plan_training(config, args.B * args.T, args.recompute, lowest_trained_layer(parameters, config), bytes_each)
          : plan_forward(config, args.B, args.T, LogitsWanted::kLast, false, bytes_each);
  of(bytes, MemoryKind::kActivations) = activations.activations;
  of(bytes, MemoryKind::kScratch) = activations.scratch + engine_bytes(config, args, parameters);
  if (args.training) {
    const bool bf16_rows = args.cuda && !args.keep_gradients;
    of(bytes, MemoryKind::kScratch) += PackedAdamW::scratch_bytes(parameters, args.optimizer, bf16_rows) + summing;
  }
  const int64_t pages = (args.cache_tokens + kPageTokens - 1) / kPageTokens;
  of(bytes, MemoryKind::kCache) =
      pages * kPageTokens * 2 * config.L * config.KV * config.D * dtype_bytes(args.cache_dtype);
  return bytes;
}

}  // namespace qn
