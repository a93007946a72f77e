#include "train/tape.h"

#include <algorithm>
#include <cmath>

#include "train/memory_plan.h"
#include "train/tape_state.h"

namespace qn {

namespace {

int64_t tape_bytes(const ModelConfig& config, int64_t N, Recompute recompute, int64_t lowest,
                   int64_t activation_bytes) {
  ArenaPlan plan;
  take_tape(plan, config, N, recompute, lowest, activation_bytes);
  return plan.bytes();
}

// targets[b, t]: what position t predicts, kIgnoreLabel for nothing.
std::vector<int32_t> align_labels(const Tape& tape, const int32_t* labels, bool shifted) {
  const int64_t V = tape.model.config().V;
  std::vector<int32_t> targets(static_cast<size_t>(tape.N()), kIgnoreLabel);
  for (int64_t i = 0; i < tape.N(); ++i) {
    if (labels[i] != kIgnoreLabel && (labels[i] < 0 || labels[i] >= V)) {
      fail(Code::kInvalidArgument, "Expected labels in [0, %lld) or %d but received %d at position %lld", (long long)V,
           kIgnoreLabel, labels[i], (long long)i);
    }
    const int64_t start = tape.starts.empty() ? 0 : tape.starts[static_cast<size_t>(i)];
    if (shifted) {
      targets[static_cast<size_t>(i)] = labels[i];
    } else if (i % tape.T != start) {
      targets[static_cast<size_t>(i - 1)] = labels[i];
    }
  }
  return targets;
}

}  // namespace

Tape::Tape(Engine& engine, Model& owner, const TapeArgs& args)
    : model(owner),
      B(args.B),
      T(args.T),
      recompute(args.recompute),
      lowest(lowest_kept_layer(owner, args)),
      activation_bytes(engine.activation_bytes()),
      ids(args.ids, args.ids + args.B * args.T),
      version(owner.version()),
      arena(owner.device().ledger(), MemoryKind::kActivations,
            tape_bytes(owner.config(), args.B * args.T, args.recompute, lowest, activation_bytes)) {
  if (args.mask) mask.assign(args.mask, args.mask + N());
  if (args.starts) starts.assign(args.starts, args.starts + N());
  buffers = take_tape(arena, owner.config(), N(), recompute, lowest, activation_bytes);
  device_ids = engine.upload(buffers.ids, ids.data(), N());
  device_mask = engine.upload(buffers.mask, args.mask ? mask.data() : nullptr, N());
  device_starts = engine.upload(buffers.starts, args.starts ? starts.data() : nullptr, N());
}

int64_t lowest_trained_layer(const std::deque<Parameter>& parameters, const ModelConfig& config) {
  const auto first = std::find_if(parameters.begin(), parameters.end(), [](const Parameter& p) { return p.trainable; });
  if (first == parameters.end()) return config.L;
  return first->id == 0 ? 0 : std::min((int64_t{first->id} - 1) / kLayerParameters, config.L);
}

int64_t lowest_kept_layer(Model& model, const TapeArgs& args) {
  return args.every_input ? 0 : lowest_trained_layer(model.parameters(), model.config());
}

std::shared_ptr<Tape> record_forward(Model& model, const TapeArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  const auto positions = token_positions(args.starts, args.B, args.T, 0);
  require_tape_memory(model, args);
  const ModelConfig& c = model.config();
  const auto engine = make_engine(model.device(), cpu);
  auto tape = std::make_shared<Tape>(*engine, model, args);
  TapeBuffers& b = tape->buffers;
  engine->rope_tables(b.cosines, b.sines, positions, c.D, c.rope_base);
  engine->embedding(b.x[0], model.embedding(), tape->device_ids, tape->N());
  const LayerPass pass = tape->pass(*engine);
  for (int64_t i = 0; i < c.L; ++i) {
    cpu.check_cancelled();
    layer_forward(pass, i, b.x[static_cast<size_t>(i)], b.layers[static_cast<size_t>(i)],
                  b.x[static_cast<size_t>(i + 1)]);
  }
  engine->rms_norm(b.final_norm, b.final_inv_rms, b.x.back(), model.final_norm(), tape->N(), c.eps);
  return tape;
}

void tape_logits(Tape& tape, float* logits, const Cpu& cpu) {
  const auto engine = make_engine(tape.model.device(), cpu);
  engine->logits(logits, tape.buffers.final_norm, tape.model.head().view(), tape.N(), false);
}

void tape_hidden(Tape& tape, int64_t index, float* hidden, const Cpu& cpu) {
  const ModelConfig& c = tape.model.config();
  const Activation* x = index < c.L ? tape.buffers.x[static_cast<size_t>(index)] : tape.buffers.final_norm;
  make_engine(tape.model.device(), cpu)->widen(hidden, x, tape.N() * c.H);
}

LossValue tape_cross_entropy(Tape& tape, const int32_t* labels, bool shifted, const Cpu& cpu) {
  const auto engine = make_engine(tape.model.device(), cpu);
  tape.targets = align_labels(tape, labels, shifted);
  const WeightView head = tape.model.head().view();
  const int64_t N = tape.N(), chunk = tape.head_chunk();
  TapeBuffers& b = tape.buffers;
  tape.device_targets = engine->upload(b.targets, tape.targets.data(), N);
  engine->fill(b.lse, -INFINITY, N);
  engine->fill(b.label_sum, 0.0f, N);
  engine->fill(b.label_logit, 0.0f, N);
  const CrossEntropyState state{b.lse, b.label_sum, b.label_logit};

  const Buffer scratch(tape.model.device().ledger(), MemoryKind::kScratch, N * chunk * tape.activation_bytes);
  auto* logits = scratch.as<Activation>();
  for (int64_t begin = 0; begin < head.rows; begin += chunk) {
    cpu.check_cancelled();
    const WeightView slice = head.slice_rows(begin, std::min(chunk, head.rows - begin));
    engine->linear(logits, b.final_norm, slice, N, false);
    engine->cross_entropy_accumulate(state, logits, tape.device_targets, N, slice.rows, begin);
  }
  engine->cross_entropy_finish(b.lse, state, N);

  std::vector<float> lse(static_cast<size_t>(N)), label_logit(lse.size());
  engine->download(lse.data(), b.lse, N);
  engine->download(label_logit.data(), b.label_logit, N);
  LossValue loss;
  double sum = 0;
  for (size_t i = 0; i < lse.size(); ++i) {
    if (tape.targets[i] == kIgnoreLabel) continue;
    sum += static_cast<double>(lse[i]) - static_cast<double>(label_logit[i]);
    ++loss.tokens;
  }
  tape.target_count = loss.tokens;
  loss.mean = loss.tokens ? sum / static_cast<double>(loss.tokens) : 0;
  return loss;
}

LossValue tape_hidden_l1(Tape& tape, const float* target, const Cpu& cpu) {
  Device& device = tape.model.device();
  const int64_t N = tape.N(), L = tape.model.config().L, H = tape.model.config().H;
  const Buffer states(device.ledger(), MemoryKind::kScratch, N * H * 4);
  tape_hidden(tape, L, states.as<float>(), cpu);
  tape.hidden_gradient = Buffer(device.host_ledger(), MemoryKind::kActivations, N * H * 4, true);
  auto* gradient = tape.hidden_gradient.as<float>();
  device.copy_out(gradient, states.data(), N * H * 4);

  const auto counts = [&](int64_t t) { return tape.mask.empty() || tape.mask[static_cast<size_t>(t)] != 0; };
  LossValue loss;
  for (int64_t t = 0; t < N; ++t) loss.tokens += counts(t) ? 1 : 0;
  const float each = loss.tokens ? 1.0f / static_cast<float>(loss.tokens * H) : 0.0f;
  double sum = 0;
  for (int64_t i = 0; i < N * H; ++i) {
    const double difference = counts(i / H) ? double{gradient[i]} - double{target[i]} : 0;
    sum += std::abs(difference);
    // What is not finite must not pass as a sign.
    gradient[i] = std::isfinite(difference) ? each * static_cast<float>((difference > 0) - (difference < 0)) : NAN;
  }
  loss.mean = loss.tokens ? sum / static_cast<double>(loss.tokens * H) : 0;
  return loss;
}

std::string first_non_finite(Tape& tape, const Cpu& cpu) {
  const auto engine = make_engine(tape.model.device(), cpu);
  const int64_t L = tape.model.config().L, count = tape.N() * tape.model.config().H;
  for (int64_t i = tape.lowest; i <= L; ++i) {
    if (engine->all_finite(tape.buffers.x[static_cast<size_t>(i)], count)) continue;
    return i == 0 ? "model.embed_tokens" : "model.layers." + std::to_string(i - 1);
  }
  return engine->all_finite(tape.buffers.final_norm, count) ? "lm_head" : "model.norm";
}

}  // namespace qn
