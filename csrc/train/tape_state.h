// What a Tape holds, and the memory plan of a training pass: shared by tape.cpp (forward) and backward.cpp.
#pragma once

#include <vector>

#include "model/forward_plan.h"
#include "train/tape.h"

namespace qn {

// How a layer's activations are kept: the matrix products' outputs, and what is cheap to make again from them.
struct KeptParts {
  bool products, cheap;
};
constexpr KeptParts kept_parts(Recompute recompute) {
  return {recompute != Recompute::kAll, recompute == Recompute::kNone};
}

template <typename AnyArena>
void take_products(AnyArena& arena, LayerActivations& a, const ModelConfig& c, int64_t N, int64_t bytes) {
  const auto take = [&](int64_t count) { return take_activations(arena, count, bytes); };
  a.q_raw = take(N * c.Q * c.D);
  a.k_raw = take(N * c.KV * c.D);
  a.v = take(N * c.KV * c.D);
  a.att = take(N * c.Q * c.D);
  a.lse = arena.template take<float>(N * c.Q);
  a.x_mid = take(N * c.H);
  a.gate = take(N * c.F);
  a.up = take(N * c.F);
}

template <typename AnyArena>
void take_cheap(AnyArena& arena, LayerActivations& a, const ModelConfig& c, int64_t N, int64_t bytes) {
  const auto take = [&](int64_t count) { return take_activations(arena, count, bytes); };
  a.x_norm = take(N * c.H);
  a.x_inv_rms = arena.template take<float>(N);
  a.q = take(N * c.Q * c.D);
  a.k = take(N * c.KV * c.D);
  a.q_inv_rms = arena.template take<float>(N * c.Q);
  a.k_inv_rms = arena.template take<float>(N * c.KV);
  a.mid_norm = take(N * c.H);
  a.mid_inv_rms = arena.template take<float>(N);
  a.act = take(N * c.F);
}

// Kept from the forward pass to the backward pass.
struct TapeBuffers {
  // L + 1 of [N, H]: each layer's input, then the input of the final norm. The lowest trained layer's and those below
  // are one buffer, which a pass leaves with the former.
  std::vector<Activation*> x;
  Activation* final_norm;           // [N, H]
  float* final_inv_rms;             // [N]
  int32_t *ids, *targets, *starts;  // [N]: copies for operations that do not read host memory
  uint8_t* mask;
  float *cosines, *sines;                         // [N, D/2]
  float *lse, *label_sum, *label_logit, *weight;  // [N]: cross-entropy state; lse is the running maximum until finished
  std::vector<LayerActivations> layers;           // L entries; shared parts point to the same memory
};

// `lowest`: lowest_trained_layer(), or 0 to keep everything.
template <typename AnyArena>
TapeBuffers take_tape(AnyArena& arena, const ModelConfig& c, int64_t N, Recompute recompute, int64_t lowest,
                      int64_t bytes) {
  const auto take = [&](int64_t count) { return take_activations(arena, count, bytes); };
  TapeBuffers b{};
  for (int64_t i = 0; i <= c.L; ++i) b.x.push_back(i == 0 || i > lowest ? take(N * c.H) : b.x.back());
  b.final_norm = take(N * c.H);
  b.final_inv_rms = arena.template take<float>(N);
  b.cosines = arena.template take<float>(N * (c.D / 2));
  b.sines = arena.template take<float>(N * (c.D / 2));
  b.ids = arena.template take<int32_t>(N);
  b.targets = arena.template take<int32_t>(N);
  b.starts = arena.template take<int32_t>(N);
  b.mask = arena.template take<uint8_t>(N);
  for (float** p : {&b.lse, &b.label_sum, &b.label_logit, &b.weight}) *p = arena.template take<float>(N);
  const KeptParts kept = kept_parts(recompute);
  LayerActivations shared{};
  if (!kept.products) take_products(arena, shared, c, N, bytes);
  if (!kept.cheap) take_cheap(arena, shared, c, N, bytes);
  for (int64_t i = 0; i < c.L; ++i) {
    if (i > 0 && i <= lowest) {
      b.layers.push_back(b.layers.back());
      continue;
    }
    LayerActivations a = shared;
    if (kept.products) take_products(arena, a, c, N, bytes);
    if (kept.cheap) take_cheap(arena, a, c, N, bytes);
    b.layers.push_back(a);
  }
  return b;
}

// Gradients of activations, alive only during backward.
struct BackwardBuffers {
  Activation *dx, *dnorm;  // [N, H]
  Activation *dq, *datt;   // [N, Q·D]
  Activation *dk, *dv;     // [N, KV·D]
  Activation* dact;        // [N, F]; dgate and dup overwrite gate and up
  float* vectors;          // [norm_elements()]: gradients of norms
};

// Elements of the norms of layers from `lowest` on, and of the final norm.
constexpr int64_t norm_elements(const ModelConfig& c, int64_t lowest) { return c.H + (c.L - lowest) * 2 * (c.H + c.D); }

template <typename AnyArena>
BackwardBuffers take_backward(AnyArena& arena, const ModelConfig& c, int64_t N, int64_t lowest, int64_t bytes) {
  const auto take = [&](int64_t count) { return take_activations(arena, count, bytes); };
  BackwardBuffers b{};
  b.dx = take(N * c.H);
  b.dnorm = take(N * c.H);
  b.vectors = arena.template take<float>(norm_elements(c, lowest));
  if (lowest == c.L) return b;
  b.dq = take(N * c.Q * c.D);
  b.datt = take(N * c.Q * c.D);
  b.dk = take(N * c.KV * c.D);
  b.dv = take(N * c.KV * c.D);
  b.dact = take(N * c.F);
  return b;
}

// Rows of the head whose logits are made at once for N tokens: about 32 MiB on the CPU, where they should stay near
// its caches, and 128 MiB on CUDA; a multiple of 64 unless the vocabulary ends.
constexpr int64_t head_chunk_rows(int64_t N, int64_t V, int64_t activation_bytes) {
  const int64_t budget = activation_bytes == 4 ? int64_t{32} << 20 : int64_t{128} << 20;
  const int64_t rows = budget / (activation_bytes * (N > 0 ? N : 1)) / 64 * 64;
  const int64_t bounded = rows < 64 ? 64 : rows;
  return bounded < V ? bounded : V;
}

// The layer from which a tape keeps what backward needs.
int64_t lowest_kept_layer(Model& model, const TapeArgs& args);

class Tape {
 public:
  Tape(Engine& engine, Model& model, const TapeArgs& args);

  LayerPass pass(Engine& engine) const {
    return {model, engine, B, T, device_mask, device_starts, buffers.cosines, buffers.sines};
  }
  int64_t head_chunk() const { return head_chunk_rows(N(), model.config().V, activation_bytes); }
  int64_t N() const { return B * T; }

  Model& model;
  int64_t B, T;
  Recompute recompute;
  int64_t lowest;  // layer that the buffers are kept from
  int64_t activation_bytes;
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask;
  std::vector<int32_t> starts;
  std::vector<int32_t> targets;  // [N] aligned labels once the loss is taken
  // Where operations read these four: the vectors above, or the copies in `buffers`.
  const int32_t* device_ids = nullptr;
  const uint8_t* device_mask = nullptr;
  const int32_t* device_starts = nullptr;
  const int32_t* device_targets = nullptr;
  int64_t target_count = 0;
  Buffer hidden_gradient;  // f32[N, H] of the host, in place of targets: see tape_hidden_l1()
  bool consumed = false;
  uint64_t version;
  Arena arena;
  TapeBuffers buffers;
};

}  // namespace qn
