#include "train/tape.h"

#include <algorithm>
#include <cmath>

#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "train/tape_state.h"

namespace qn {

namespace {

int64_t tape_bytes(const ModelConfig& config, int64_t N, Recompute recompute) {
  ArenaPlan plan;
  take_tape(plan, config, N, recompute);
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
    if (shifted) {
      targets[static_cast<size_t>(i)] = labels[i];
    } else if (i % tape.T != 0) {
      targets[static_cast<size_t>(i - 1)] = labels[i];
    }
  }
  return targets;
}

}  // namespace

Tape::Tape(Model& owner, const TapeArgs& args)
    : model(owner),
      B(args.B),
      T(args.T),
      recompute(args.recompute),
      ids(args.ids, args.ids + args.B * args.T),
      version(owner.version()),
      arena(owner.device().ledger(), MemoryKind::kActivations,
            tape_bytes(owner.config(), args.B * args.T, args.recompute)) {
  if (args.mask) mask.assign(args.mask, args.mask + N());
  buffers = take_tape(arena, owner.config(), N(), recompute);
}

std::shared_ptr<Tape> record_forward(Model& model, const TapeArgs& args, const Cpu& cpu) {
  check_token_ids(model.config(), args.ids, args.B, args.T);
  const ModelConfig& c = model.config();
  auto tape = std::make_shared<Tape>(model, args);
  TapeBuffers& b = tape->buffers;
  fill_rope_tables(b.cosines, b.sines, c, args.B, args.T, 0, cpu);
  embedding_cpu(b.x[0], model.embedding().view(), tape->ids.data(), tape->N(), cpu);
  const LayerPass pass = tape->pass(cpu);
  for (int64_t i = 0; i < c.L; ++i) {
    cpu.check_cancelled();
    layer_forward(pass, i, b.x[static_cast<size_t>(i)], b.layers[static_cast<size_t>(i)],
                  b.x[static_cast<size_t>(i + 1)]);
  }
  std::vector<float> decoded(static_cast<size_t>(c.H));
  rms_norm_cpu(b.final_norm, b.final_inv_rms, b.x.back(), vector_values(model.final_norm(), decoded.data()), tape->N(),
               c.H, c.eps, cpu);
  return tape;
}

void tape_logits(Tape& tape, float* logits, const Cpu& cpu) {
  linear_cpu(logits, tape.buffers.final_norm, tape.model.head().view(), tape.N(), false, cpu);
}

LossValue tape_cross_entropy(Tape& tape, const int32_t* labels, bool shifted, const Cpu& cpu) {
  tape.targets = align_labels(tape, labels, shifted);
  const WeightView head = tape.model.head().view();
  const int64_t N = tape.N(), chunk = head_chunk_rows(N, head.rows);
  TapeBuffers& b = tape.buffers;
  std::fill_n(b.lse, N, -INFINITY);
  std::fill_n(b.label_sum, N, 0.0f);
  std::fill_n(b.label_logit, N, 0.0f);
  const CrossEntropyState state{b.lse, b.label_sum, b.label_logit};

  const Buffer logits(tape.model.device().ledger(), MemoryKind::kScratch, N * chunk * 4);
  for (int64_t begin = 0; begin < head.rows; begin += chunk) {
    cpu.check_cancelled();
    const WeightView slice = head.slice_rows(begin, std::min(chunk, head.rows - begin));
    linear_cpu(logits.as<float>(), b.final_norm, slice, N, false, cpu);
    cross_entropy_accumulate_cpu(state, logits.as<float>(), tape.targets.data(), N, slice.rows, begin, cpu);
  }
  cross_entropy_finish_cpu(b.lse, state, N);

  LossValue loss;
  double sum = 0;
  for (int64_t i = 0; i < N; ++i) {
    if (tape.targets[static_cast<size_t>(i)] == kIgnoreLabel) continue;
    sum += static_cast<double>(b.lse[i]) - static_cast<double>(b.label_logit[i]);
    ++loss.tokens;
  }
  tape.target_count = loss.tokens;
  loss.mean = loss.tokens ? sum / static_cast<double>(loss.tokens) : 0;
  return loss;
}

}  // namespace qn
