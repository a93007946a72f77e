#include "model/engine_scratch.h"

#include <algorithm>

#include "ops/linear.h"

namespace qn {

namespace {

// The least slices of ops/linear.cu: they may be longer than kLinearSliceBytes.
constexpr int64_t kLeastSliceRows = 128, kLeastSliceCols = 64;

}  // namespace

void EngineScratch::see(const Parameter& matrix, int64_t rows, bool residual) {
  const int64_t decoded = rows * matrix.cols * 2;
  if (matrix.storage == Storage::kNvfp4) {
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

EngineScratch engine_scratch(Model& model, int64_t head_rows) {
  EngineScratch scratch;
  for (const Parameter& parameter : model.parameters()) {
    const bool head = &parameter == &model.head();
    if (parameter.is_vector || (!head && &parameter == &model.embedding())) continue;
    scratch.see(parameter, head ? head_rows : parameter.rows, parameter.shows_residual());
  }
  return scratch;
}

}  // namespace qn
