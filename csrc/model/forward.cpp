#include "model/forward.h"

#include <cstring>

#include "model/forward_plan.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace qn {

namespace {

void keep_hidden(ForwardOutput& out, Model& model, const float* x, int64_t N) {
  const int64_t bytes = N * model.config().H * 4;
  out.hidden.emplace_back(model.device().ledger(), MemoryKind::kActivations, bytes);
  std::memcpy(out.hidden.back().data(), x, static_cast<size_t>(bytes));
}

// Final norm of the rows that are wanted, then the head.
void finish(ForwardOutput& out, Model& model, const ForwardArgs& args, const ForwardScratch& s, const LayerPass& pass) {
  const ModelConfig& c = model.config();
  const int64_t N = pass.N();
  const bool all = args.logits == LogitsWanted::kAll;
  std::vector<float> decoded(static_cast<size_t>(c.H));
  const float* w = vector_values(model.final_norm(), decoded.data());
  float* normed = s.a.x_norm;
  if (all || args.hidden_states) {
    rms_norm_cpu(normed, nullptr, s.x, w, N, c.H, c.eps, pass.cpu);
    if (args.hidden_states) keep_hidden(out, model, normed, N);
  }
  if (args.logits == LogitsWanted::kNone) return;
  if (!all) {
    for (int64_t b = 0; b < args.B; ++b) {
      rms_norm_cpu(normed + b * c.H, nullptr, s.x + ((b + 1) * args.T - 1) * c.H, w, 1, c.H, c.eps, pass.cpu);
    }
  }
  out.rows = all ? N : args.B;
  out.logits = Buffer(model.device().ledger(), MemoryKind::kActivations, out.rows * c.V * 4);
  const auto multiply = args.reference ? [](float* y, const float* x, const WeightView& w, int64_t T,
                                            const Cpu& cpu) { linear_reference_cpu(y, x, w, T, cpu); }
                                       : [](float* y, const float* x, const WeightView& w, int64_t T, const Cpu& cpu) {
                                           linear_cpu(y, x, w, T, false, cpu);
                                         };
  multiply(out.logits.as<float>(), normed, model.head().view(), out.rows, pass.cpu);
}

ForwardOutput run(Model& model, KvCache* cache, const ForwardArgs& args, const Cpu& cpu) {
  const ModelConfig& c = model.config();
  const int64_t N = args.B * args.T;
  ArenaPlan plan;
  take_forward_scratch(plan, c, N);
  Arena arena(model.device().ledger(), MemoryKind::kActivations, plan.bytes());
  const ForwardScratch s = take_forward_scratch(arena, c, N);
  const LayerPass pass{model, cpu, args.B, args.T, args.mask, s.cosines, s.sines, cache, args.reference};

  ForwardOutput out;
  fill_rope_tables(s.cosines, s.sines, c, args.B, args.T, cache ? cache->seq_len() : 0, cpu);
  embedding_cpu(s.x, model.embedding().view(), args.ids, N, cpu);
  for (int64_t layer = 0; layer < c.L; ++layer) {
    cpu.check_cancelled();
    if (args.hidden_states) keep_hidden(out, model, s.x, N);
    layer_forward(pass, layer, s.x, s.a, s.x);
  }
  finish(out, model, args, s, pass);
  return out;
}

}  // namespace

void check_token_ids(const ModelConfig& config, const int32_t* ids, int64_t B, int64_t T) {
  if (B < 1 || T < 1) fail(Code::kInvalidArgument, "Expected at least one token for ids but received none");
  for (int64_t i = 0; i < B * T; ++i) {
    if (ids[i] < 0 || ids[i] >= config.V) {
      fail(Code::kInvalidArgument, "Expected ids in [0, %lld) but received %d at position %lld", (long long)config.V,
           ids[i], (long long)i);
    }
  }
}

ForwardOutput forward(Model& model, const ForwardArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  return run(model, nullptr, args, cpu);
}

ForwardOutput forward_cached(Model& model, KvCache& cache, const ForwardArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  if (args.B != 1 || args.mask) {
    fail(Code::kInvalidArgument, "Expected one sequence without a mask for a cached forward but received %lld",
         (long long)args.B);
  }
  cache.reserve(args.T);
  ForwardOutput out = run(model, &cache, args, cpu);
  cache.advance(args.T);
  return out;
}

}  // namespace qn
