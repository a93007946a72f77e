#include "model/engine_scratch.h"

#include <algorithm>

#include "ops/linear_w4a4.h"

namespace qn {

namespace {

// The least slices of ops/linear.cu: they may be longer than kLinearSliceBytes.
constexpr int64_t kLeastSliceRows = 128, kLeastSliceCols = 64;

}  // namespace

void EngineScratch::see(const Parameter& matrix, int64_t rows, bool residual) {
  const int64_t decoded = rows * matrix.cols * 2;
  if (is_packed(matrix.storage)) {
    const int64_t least = 2 * std::max(kLeastSliceRows * matrix.cols, kLeastSliceCols * rows);
    slices_ = std::max(slices_, std::min(decoded, std::max(kLinearSliceBytes, least)));
    if (residual) summed_cols_ = std::max(summed_cols_, matrix.cols);
  } else if (matrix.storage != Storage::kBF16) {
    rounded_ = std::max(rounded_, decoded);
  }
}

int64_t EngineScratch::forward() const { return kCublasWorkspaceBytes + slices_ + rounded_; }

int64_t EngineScratch::backward(const ModelConfig& config, int64_t N) const {
  return forward() + N * summed_cols_ * 4 + N * config.Q * 4;
}

int64_t decoded_head_rows(const ModelConfig& config, Storage head, int64_t rows) {
  return is_packed(head) && rows <= kGemvTokens ? 0 : config.V;
}

EngineScratch engine_scratch(Model& model, int64_t head_rows) {
  EngineScratch scratch;
  for (const Parameter& parameter : model.parameters()) {
    const bool head = &parameter == &model.head();
    if (parameter.is_vector || (!head && &parameter == &model.embedding())) continue;
    scratch.see(parameter, head ? head_rows : parameter.rows, parameter.shows_residual());
  }
  return scratch;
}

int64_t forward_scratch(Model& model, int64_t N, int64_t head_rows) {
  int64_t bytes = engine_scratch(model, head_rows).forward();
  if (model.compute() == Compute::kW4A16) return bytes;
  for (const Parameter& parameter : model.parameters()) {
    if (parameter.is_vector) continue;
    bytes = std::max(bytes, linear_w4a4_scratch_bytes(parameter.rows, parameter.cols, N));
  }
  return bytes;
}

}  // namespace qn
