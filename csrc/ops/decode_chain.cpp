#include "ops/decode_chain.h"

#include <algorithm>

#include "core/status.h"

namespace qn {

namespace {

constexpr int64_t kTileRows = 8, kUnitColumns = 512;

// What the kernel's sums are of: codes · 2^-126, scales · 2^-8 and x · 2^64 (nvfp4_unit_cuda.h).
constexpr float kFactor = 0x1p70f;

ChainStage stage_of(const ChainProduct& product, const std::vector<ChainProduct>& before) {
  const auto require = [&](bool holds, const char* what) {
    if (!holds) fail(Code::kInternal, "stage %zu of a chain: %s", before.size(), what);
  };
  require(product.K > 0 && product.K % kUnitColumns == 0, "columns are no multiple of 512");
  require(product.K <= 64 * kUnitColumns, "more than 32768 columns");
  require(!product.norm || product.K <= 8192, "more than 8192 columns to normalise");
  require(product.source < static_cast<int>(before.size()), "its source is no earlier stage");
  require(before.size() < INT16_MAX, "too many stages");
  require(product.messages || product.y, "no output");
  require(!product.swiglu || (product.matrix_count == 2 && product.N[0] == product.N[1]), "SwiGLU of no pair");
  require(!product.accumulate || (product.matrix_count == 1 && !product.swiglu), "several weights to add");
  ChainStage stage{};
  int64_t rows = 0;
  for (int i = 0; i < kChainMatrices; ++i) {
    if (i < product.matrix_count) {
      require(product.N[i] > 0 && product.N[i] % kTileRows == 0, "rows are no multiple of 8");
      stage.codes[i] = product.w[i].codes;
      stage.scales[i] = product.w[i].scales;
      stage.factors[i] = product.w[i].global_scale * kFactor;
      rows += product.N[i];
    }
    stage.ends[i] = static_cast<int32_t>(rows / kTileRows);
  }
  // A tile of both has four rows of each.
  if (product.swiglu) std::fill_n(stage.ends, kChainMatrices, static_cast<int32_t>(rows / kTileRows));
  stage.norm = product.norm;
  stage.messages = product.messages;
  stage.y = product.y;
  stage.y_f32 = product.y_f32;
  stage.K = static_cast<int32_t>(product.K);
  stage.source_stage = static_cast<int16_t>(product.source);
  if (product.source >= 0) stage.source = before[static_cast<size_t>(product.source)].messages;
  stage.swiglu = product.swiglu;
  stage.accumulate = product.accumulate;
  require(product.source < 0 || stage.source, "its source sends no messages");
  return stage;
}

}  // namespace

ChainPlan plan_chain(const std::vector<ChainProduct>& products) {
  ChainPlan plan;
  std::vector<ChainProduct> before;
  for (const ChainProduct& product : products) {
    plan.stages.push_back(stage_of(product, before));
    before.push_back(product);
    plan.K = std::max(plan.K, product.K);
    if (!product.accumulate) continue;
    if (plan.H != 0 && plan.H != product.N[0]) fail(Code::kInternal, "a chain that adds to rows of two lengths");
    plan.H = product.N[0];
  }
  return plan;
}

}  // namespace qn
