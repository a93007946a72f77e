// A forward pass that can be differentiated: layer inputs are kept, the rest is recomputed (or kept) per `recompute`.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "model/forward.h"
#include "train/gradient_sink.h"

namespace qn {

// What the backward pass recomputes: everything inside a layer; only norms and SwiGLU; nothing.
enum class Recompute : uint8_t { kAll, kCheap, kNone };

class Tape;

struct TapeArgs {
  const int32_t* ids = nullptr;  // [B, T]
  int64_t B = 1, T = 0;
  const uint8_t* mask = nullptr;    // u8[B, T] or null
  const int32_t* starts = nullptr;  // i32[B, T] or null: segments, see ops/attention.h
  Recompute recompute = Recompute::kAll;
  bool every_input = false;  // keep the inputs of layers that no gradient reaches too, for tape_hidden()
  int64_t result_bytes = 0;  // what the caller will allocate beside the tape, for the plan of its memory
};

// The lowest layer that a backward pass enters, by which parameters train: 0 with the embedding, L where only the final
// norm or the head do.
int64_t lowest_trained_layer(const std::deque<Parameter>& parameters, const ModelConfig& config);

// Runs the layers and keeps what backward needs: nothing of layers below the lowest that trains. The tape owns copies
// of ids, mask and starts.
std::shared_ptr<Tape> record_forward(Model& model, const TapeArgs& args, const Cpu& cpu);

// logits f32[B·T, V] into `logits` (caller's, on the device), for losses of the user's own.
void tape_logits(Tape& tape, float* logits, const Cpu& cpu);
// The input of layer `index`, or at L the states after the final norm: f32[B·T, H] into `hidden` (as above).
void tape_hidden(Tape& tape, int64_t index, float* hidden, const Cpu& cpu);

struct LossValue {
  double mean = 0;     // over what counts; 0 when nothing does
  int64_t tokens = 0;  // that count: those with a label that is not -100
};
// labels[b, t] is the target of position t BEFORE shifting, as Hugging Face takes them: position t predicts labels[t +
// 1], and the last one of a segment nothing. With `shifted`, labels are already aligned: position t predicts labels[t].
// Keeps log-sum-exps for backward.
LossValue tape_cross_entropy(Tape& tape, const int32_t* labels, bool shifted, const Cpu& cpu);

// Mean |hidden − target| over the elements of the final normalised states, target f32[B·T, H] of the host. Tokens that
// the mask hides do not count. Keeps its gradient, sign / count, for backward. Computed on the host: it is for
// debugging.
LossValue tape_hidden_l1(Tape& tape, const float* target, const Cpu& cpu);

// The module whose output is the first of a pass that is not finite: 'model.embed_tokens', 'model.layers.N',
// 'model.norm', or 'lm_head' when all of them are. Where nothing is kept of a layer and those below, the one above it.
std::string first_non_finite(Tape& tape, const Cpu& cpu);

// Gradients of scale · loss (after one of the two above) or of Σ dlogits · logits (dlogits f32[B·T, V] of the host)
// into the sink. Consumes the tape. Does nothing below the lowest layer that trains. Throws kStaleGradient if weights
// changed since, or a parameter came to train that the tape has nothing for, kNonFiniteGradient before anything reached
// the sink when the loss gradient itself is not finite.
void backward(Tape& tape, const float* dlogits, float scale, GradientSink& sink, const Cpu& cpu);

}  // namespace qn
