#include "train/memory_estimate.h"

#include <algorithm>

#include "format/nvfp4.h"
#include "model/kv_cache.h"

namespace qn {

namespace {

int64_t& of(MemoryBytes& bytes, MemoryKind kind) { return bytes[static_cast<size_t>(kind)]; }

// As Parameter::allocate() stores it: vectors and matrices not divisible into blocks stay dense.
Storage stored_form(const ParameterSpec& spec, Storage wanted) {
  if (spec.is_vector) return Storage::kF32;
  return wanted == Storage::kNvfp4 && spec.cols % kBlockSize != 0 ? Storage::kF32 : wanted;
}

int64_t dense_bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

int64_t gradient_bytes(const ParameterSpec& spec, GradientFormat format) {
  const int64_t count = spec.rows * spec.cols;
  if (format == GradientFormat::kFp32 || spec.is_vector || spec.cols % kBlockSize != 0) return count * 4;
  if (format == GradientFormat::kBf16) return count * 2;
  return count / 2 + count / kBlockSize + spec.rows * 4;  // codes, block scales, a row scale
}

}  // namespace

MemoryBytes estimate_memory(const ModelConfig& config, const MemoryPlanArgs& args) {
  MemoryBytes bytes{};
  int64_t widest = 0;
  uint32_t id = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    const int64_t count = spec.rows * spec.cols;
    Parameter parameter;
    parameter.id = id++;
    parameter.rows = spec.rows;
    parameter.cols = spec.cols;
    parameter.is_vector = spec.is_vector;
    parameter.storage = stored_form(spec, args.weights);
    if (parameter.storage == Storage::kNvfp4) {
      of(bytes, MemoryKind::kWeights) += count / 2;
      of(bytes, MemoryKind::kScales) += count / kBlockSize;
    } else {
      of(bytes, MemoryKind::kWeights) += count * dense_bytes(parameter.storage);
    }
    if (!args.training) continue;
    of(bytes, MemoryKind::kMoments) += PackedAdamW::state_bytes(parameter, args.optimizer);
    if (args.keep_gradients) of(bytes, MemoryKind::kGradients) += gradient_bytes(spec, args.gradients);
    // A chunk of gradient rows in f32 exists while it is consumed.
    if (!spec.is_vector) widest = std::max(widest, std::min(args.optimizer.step_chunk_rows, spec.rows) * spec.cols * 4);
  }

  const int64_t bytes_each = activation_bytes(args.cuda);
  const ActivationPlan activations = args.training
                                         ? plan_training(config, args.B, args.T, args.recompute, bytes_each)
                                         : plan_forward(config, args.B, args.T, LogitsWanted::kLast, false, bytes_each);
  of(bytes, MemoryKind::kActivations) = activations.activations;
  of(bytes, MemoryKind::kScratch) =
      activations.scratch + widest + (args.threads > 0 ? args.threads : available_cores()) * kWorkerScratchBytes;
  const int64_t pages = (args.cache_tokens + kPageTokens - 1) / kPageTokens;
  of(bytes, MemoryKind::kCache) =
      pages * kPageTokens * 2 * config.L * config.KV * config.D * dtype_bytes(args.cache_dtype);
  return bytes;
}

}  // namespace qn
