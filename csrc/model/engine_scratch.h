// Scratch that an engine on CUDA grows to while it runs a model, from shapes alone: what engine_cuda.cpp asks of
// ops/linear.h and ops/attention.h, or a little more. What is far below a megabyte is left out.
#pragma once

#include "model/model.h"

namespace qn {

class EngineScratch {
 public:
  // Counts in a matrix of products of up to `rows` of its rows at once.
  void see(const Parameter& matrix, int64_t rows, bool residual);

  int64_t forward() const;
  // Of a backward pass through N tokens, which runs the layers forward too.
  int64_t backward(const ModelConfig& config, int64_t N) const;

 private:
  int64_t slices_ = 0;       // decoded rows or columns of a packed weight
  int64_t rounded_ = 0;      // an fp32 or fp16 weight in bf16
  int64_t summed_cols_ = 0;  // columns of a weight whose products are added in f32 first
};

// Rows of the head that a forward pass decodes for logits of `rows` positions: a few read a packed head as it is.
int64_t decoded_head_rows(const ModelConfig& config, Storage head, int64_t rows);

// Of a model as it stands; `head_rows` of its head at once.
EngineScratch engine_scratch(Model& model, int64_t head_rows);

// Of a forward pass of N tokens, in what the model computes with.
int64_t forward_scratch(Model& model, int64_t N, int64_t head_rows);

}  // namespace qn
