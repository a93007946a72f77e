#include "model/forward.h"

#include "model/engine_scratch.h"
#include "model/forward_plan.h"

namespace qn {

ActivationPlan plan_forward(const ModelConfig& config, int64_t B, int64_t T, LogitsWanted logits, bool hidden_states,
                            int64_t activation_bytes) {
  ArenaPlan arena;
  take_forward_scratch(arena, config, B * T, activation_bytes);
  const int64_t rows = logits == LogitsWanted::kAll ? B * T : logits == LogitsWanted::kLast ? B : 0;
  const int64_t hidden = hidden_states ? (config.L + 1) * B * T * config.H * 4 : 0;
  return {arena.bytes() + rows * config.V * 4 + hidden, 0};
}

namespace {

// Before anything is allocated.
void require_memory(Model& model, const ForwardArgs& args) {
  Device& device = model.device();
  if (!device.cuda()) return;
  const int64_t V = model.config().V;
  const bool all = args.logits == LogitsWanted::kAll;
  const int64_t rows = all ? args.B * args.T : args.logits == LogitsWanted::kNone ? 0 : args.B;
  const int64_t bytes =
      plan_forward(model.config(), args.B, args.T, args.logits, args.hidden_states, activation_bytes(true))
          .activations +
      forward_scratch(model, args.B * args.T, decoded_head_rows(model.config(), model.head().storage, rows));
  const auto shortage = device.shortage(bytes);
  if (!shortage) return;
  fail(
      Code::kOutOfMemory,
      "out of memory: a forward pass of %lld x %lld tokens needs %lld bytes, %lld of them for logits, and %lld of %lld "
      "bytes of the GPU are free: take fewer tokens at once%s",
      (long long)args.B, (long long)args.T, (long long)bytes,
      (long long)(all ? args.B * args.T * V * 4 : args.B * V * 4), (long long)shortage->free,
      (long long)shortage->total, all ? ", or logits 'last'" : "");
}

void keep_hidden(ForwardOutput& out, const LayerPass& pass, const Activation* x) {
  const int64_t count = pass.N() * pass.model.config().H;
  out.hidden.emplace_back(pass.engine.device().ledger(), MemoryKind::kActivations, count * 4);
  pass.engine.widen(out.hidden.back().as<float>(), x, count);
}

// Final norm of the rows that are wanted, then the head.
void finish(ForwardOutput& out, const ForwardArgs& args, const ForwardScratch& s, const LayerPass& pass) {
  const ModelConfig& c = pass.model.config();
  Engine& engine = pass.engine;
  const Parameter& norm = pass.model.final_norm();
  const int64_t N = pass.N();
  const bool all = args.logits == LogitsWanted::kAll;
  Activation* normed = s.a.x_norm;
  if (all || args.hidden_states) {
    engine.rms_norm(normed, nullptr, s.x, norm, N, c.eps);
    if (args.hidden_states) keep_hidden(out, pass, normed);
  }
  if (args.logits == LogitsWanted::kNone) return;
  if (!all) {
    for (int64_t b = 0; b < args.B; ++b) {
      const Activation* last = engine.at(s.x, ((b + 1) * args.T - 1) * c.H);
      engine.rms_norm(engine.at(normed, b * c.H), nullptr, last, norm, 1, c.eps);
    }
  }
  out.rows = all ? N : args.B;
  out.logits = Buffer(engine.device().ledger(), MemoryKind::kActivations, out.rows * c.V * 4);
  engine.logits(out.logits.as<float>(), normed, pass.model.head().view(), out.rows, args.reference);
}

ForwardOutput run(Model& model, KvCache* cache, const ForwardArgs& args, const Cpu& cpu) {
  const ModelConfig& c = model.config();
  const int64_t N = args.B * args.T;
  const auto positions = token_positions(args.starts, args.B, args.T, cache ? cache->seq_len() : 0);
  require_memory(model, args);
  const auto engine = make_engine(model.device(), cpu, model.compute());
  ArenaPlan plan;
  take_forward_scratch(plan, c, N, engine->activation_bytes());
  Arena arena(model.device().ledger(), MemoryKind::kActivations, plan.bytes());
  const ForwardScratch s = take_forward_scratch(arena, c, N, engine->activation_bytes());
  const int32_t* ids = engine->upload(s.ids, args.ids, N);
  const uint8_t* mask = engine->upload(s.mask, args.mask, N);
  const int32_t* starts = engine->upload(s.starts, args.starts, N);
  const LayerPass pass{model, *engine, args.B, args.T, mask, starts, s.cosines, s.sines, cache, args.reference};

  ForwardOutput out;
  engine->rope_tables(s.cosines, s.sines, positions, c.D, c.rope_base);
  engine->embedding(s.x, model.embedding(), ids, N);
  for (int64_t layer = 0; layer < c.L; ++layer) {
    cpu.check_cancelled();
    if (args.hidden_states) keep_hidden(out, pass, s.x);
    layer_forward(pass, layer, s.x, s.a, s.x);
  }
  finish(out, args, s, pass);
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

std::vector<int32_t> token_positions(const int32_t* starts, int64_t B, int64_t T, int64_t offset) {
  check_segments(starts, B, T);
  std::vector<int32_t> positions(static_cast<size_t>(B * T));
  for (int64_t i = 0; i < B * T; ++i) {
    positions[static_cast<size_t>(i)] = static_cast<int32_t>(offset + i % T) - (starts ? starts[i] : 0);
  }
  return positions;
}

ForwardOutput forward(Model& model, const ForwardArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  return run(model, nullptr, args, cpu);
}

ForwardOutput forward_cached(Model& model, KvCache& cache, const ForwardArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  if (args.B != 1 || args.mask || args.starts) {
    fail(Code::kInvalidArgument,
         "Expected one sequence without a mask or segments for a cached forward but received %lld", (long long)args.B);
  }
  cache.reserve(args.T);
  ForwardOutput out = run(model, &cache, args, cpu);
  cache.advance(args.T);
  return out;
}

}  // namespace qn
