#include "model/decode_chains.h"

#if defined(QN_WITH_CUDA)

#include <algorithm>

#include "core/cuda_context.h"

namespace qn {

namespace {

bool fits(const Parameter& w) {
  return w.storage == Storage::kNvfp4 && !w.shows_residual() && w.cols % 512 == 0 && w.rows % 8 == 0;
}

ChainProduct product(std::initializer_list<const Parameter*> weights, int source, const float* norm = nullptr) {
  ChainProduct product;
  product.matrix_count = 0;
  for (const Parameter* w : weights) {
    product.w[product.matrix_count] = w->view().packed;
    product.N[product.matrix_count++] = w->rows;
    product.K = w->cols;
  }
  product.source = source;
  product.norm = norm;
  return product;
}

ChainProduct qkv_product(const LayerParameters& p, int source, uint16_t* y, const float* norm) {
  ChainProduct qkv = product({p.q_proj, p.k_proj, p.v_proj}, source, norm);
  qkv.y = y;
  return qkv;
}

}  // namespace

bool DecodeChains::fit(Model& model) {
  const ModelConfig& c = model.config();
  bool all = c.H <= 8192 && fits(model.head());
  for (int64_t i = 0; all && i < c.L; ++i) {
    const LayerParameters& p = model.layer(i);
    const auto weights = {p.q_proj, p.k_proj, p.v_proj, p.o_proj, p.gate_proj, p.up_proj, p.down_proj};
    all = std::all_of(weights.begin(), weights.end(), [](const Parameter* w) { return fits(*w); });
  }
  ChainPlan widest;
  widest.stages.resize(4);
  widest.K = std::max({c.H, c.Q * c.D, c.F});
  widest.H = c.H;
  return all && !chain_obstacle_cuda(widest);
}

DecodeChains::DecodeChains(Model& model, const Rows& rows, const NormWeight& norm_weight)
    : rows_(rows),
      eps_(model.config().eps),
      messages_(model.device().ledger(), MemoryKind::kActivations, (2 * model.config().H + model.config().F) * 4) {
  const ModelConfig& c = model.config();
  CudaContext& cuda = *model.device().cuda();
  cuda.zero(messages_.data(), messages_.bytes());
  auto* const words = messages_.as<uint64_t>();
  const Messages messages{words, words + c.H, words + c.H / 2};  // H / 2, F / 2 and H / 2 words
  const LayerParameters& first = model.layer(0);
  plans_.push_back(plan_chain({qkv_product(first, -1, rows.qkv, norm_weight(*first.input_norm))}));
  for (int64_t i = 0; i < c.L; ++i) plans_.push_back(plan_chain(layer_products(model, i, messages, norm_weight)));

  std::vector<ChainStage> stages;
  for (const ChainPlan& plan : plans_) {
    first_stages_.push_back(stages.size());
    stages.insert(stages.end(), plan.stages.begin(), plan.stages.end());
  }
  const auto bytes = static_cast<int64_t>(stages.size() * sizeof(ChainStage));
  stages_ = Buffer(model.device().ledger(), MemoryKind::kActivations, bytes);
  cuda.copy_in(stages_.data(), stages.data(), bytes);
}

std::vector<ChainProduct> DecodeChains::layer_products(Model& model, int64_t index, const Messages& messages,
                                                       const NormWeight& norm_weight) const {
  const LayerParameters& p = model.layer(index);
  ChainProduct o = product({p.o_proj}, -1), act = product({p.gate_proj, p.up_proj}, 0, norm_weight(*p.post_norm)),
               down = product({p.down_proj}, 1);
  o.messages = messages.o;
  act.messages = messages.act;
  down.messages = messages.down;
  o.accumulate = down.accumulate = act.swiglu = true;
  if (index + 1 < model.config().L) {
    const LayerParameters& next = model.layer(index + 1);
    return {o, act, down, qkv_product(next, 2, rows_.qkv, norm_weight(*next.input_norm))};
  }
  ChainProduct head = product({&model.head()}, 2, norm_weight(model.final_norm()));
  head.y = rows_.logits;
  head.y_f32 = true;
  return {o, act, down, head};
}

void DecodeChains::launch(size_t index, CudaStream stream) {
  ChainCuda args{};
  args.plan = &plans_[index];
  args.stages = stages_.as<ChainStage>() + first_stages_[index];
  args.epoch = rows_.position;
  args.launch = static_cast<int32_t>(index);
  args.launches = static_cast<int32_t>(plans_.size());
  args.x = index == 0 ? rows_.x : rows_.att;
  args.h = rows_.x;
  args.norm_eps = eps_;
  chain_cuda(args, stream);
}

}  // namespace qn

#endif
