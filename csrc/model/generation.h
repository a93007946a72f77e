// The parts of generate() that do not depend on where tokens are made.
#pragma once

#include <functional>
#include <optional>

#include "model/generate.h"

namespace qn {

// What becomes of the tokens that were made.
class Generation {
 public:
  Generation(const GenerateArgs& args, const std::function<bool(const Sampled&)>& on_token)
      : args_(args), on_token_(on_token) {}

  // Hands a token out. The reason to end there, if there is one. Error(kDegenerateOutput).
  std::optional<FinishReason> take(const Sampled& token);
  int64_t produced() const { return produced_; }

 private:
  const GenerateArgs& args_;
  const std::function<bool(const Sampled&)>& on_token_;
  int64_t produced_ = 0;
  int32_t last_ = -1, run_ = 0;  // of equal ids
};

// Makes tokens after the prompt until the generation ends; `logits` f32[V] are those after the prompt. The cache then
// holds every produced token but the last.
FinishReason decode_cpu(Model& model, KvCache& cache, const GenerateArgs& args, Buffer logits, Generation& generation,
                        const Cpu& cpu);
FinishReason decode_cuda(Model& model, KvCache& cache, const GenerateArgs& args, Buffer logits, Generation& generation,
                         const Cpu& cpu);

}  // namespace qn
