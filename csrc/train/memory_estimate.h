// What a model and its training will hold, from shapes alone: the bytes of `model.memory()` before anything is loaded.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/memory.h"
#include "train/memory_plan.h"
#include "train/packed_adamw.h"

namespace qn {

struct MemoryPlanArgs {
  bool training = false;
  bool cuda = false;  // activations, gradient rows and scratch as on CUDA
  int64_t B = 1, T = 1;
  int threads = 1;  // of the CPU; 0: available_cores()
  Storage weights = Storage::kNvfp4;
  AdamwOptions optimizer;
  std::vector<std::string> frozen;  // names of parameters that do not train
  bool keep_gradients = false;      // backward() and step() instead of trainStep()
  GradientFormat gradients = GradientFormat::kFp32;
  Recompute recompute = Recompute::kAll;
  int64_t cache_tokens = 0;
  DType cache_dtype = DType::kF32;
};

using MemoryBytes = std::array<int64_t, kMemoryKinds>;  // by MemoryKind
MemoryBytes estimate_memory(const ModelConfig& config, const MemoryPlanArgs& args);

}  // namespace qn
