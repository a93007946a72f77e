// What a Tape holds, and the memory plan of a training pass: shared by tape.cpp (forward) and backward.cpp.
#pragma once

#include <vector>

#include "model/layer.h"
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
void take_products(AnyArena& arena, LayerActivations& a, const ModelConfig& c, int64_t N) {
  a.q_raw = arena.template take<float>(N * c.Q * c.D);
  a.k_raw = arena.template take<float>(N * c.KV * c.D);
  a.v = arena.template take<float>(N * c.KV * c.D);
  a.att = arena.template take<float>(N * c.Q * c.D);
  a.lse = arena.template take<float>(N * c.Q);
  a.x_mid = arena.template take<float>(N * c.H);
  a.gate = arena.template take<float>(N * c.F);
  a.up = arena.template take<float>(N * c.F);
}

template <typename AnyArena>
void take_cheap(AnyArena& arena, LayerActivations& a, const ModelConfig& c, int64_t N) {
  a.x_norm = arena.template take<float>(N * c.H);
  a.x_inv_rms = arena.template take<float>(N);
  a.q = arena.template take<float>(N * c.Q * c.D);
  a.k = arena.template take<float>(N * c.KV * c.D);
  a.q_inv_rms = arena.template take<float>(N * c.Q);
  a.k_inv_rms = arena.template take<float>(N * c.KV);
  a.mid_norm = arena.template take<float>(N * c.H);
  a.mid_inv_rms = arena.template take<float>(N);
  a.act = arena.template take<float>(N * c.F);
}

// Kept from the forward pass to the backward pass.
struct TapeBuffers {
  std::vector<float*> x;              // L + 1 of [N, H]: each layer's input, then the input of the final norm
  float *final_norm, *final_inv_rms;  // [N, H], [N]
  float *cosines, *sines;             // [N, D/2]
  float *lse, *label_sum, *label_logit, *weight;  // [N]: cross-entropy state; lse is the running maximum until finished
  std::vector<LayerActivations> layers;           // L entries; shared parts point to the same memory
};

template <typename AnyArena>
TapeBuffers take_tape(AnyArena& arena, const ModelConfig& c, int64_t N, Recompute recompute) {
  TapeBuffers b{};
  for (int64_t i = 0; i <= c.L; ++i) b.x.push_back(arena.template take<float>(N * c.H));
  b.final_norm = arena.template take<float>(N * c.H);
  b.final_inv_rms = arena.template take<float>(N);
  b.cosines = arena.template take<float>(N * (c.D / 2));
  b.sines = arena.template take<float>(N * (c.D / 2));
  for (float** p : {&b.lse, &b.label_sum, &b.label_logit, &b.weight}) *p = arena.template take<float>(N);
  const KeptParts kept = kept_parts(recompute);
  LayerActivations shared{};
  if (!kept.products) take_products(arena, shared, c, N);
  if (!kept.cheap) take_cheap(arena, shared, c, N);
  for (int64_t i = 0; i < c.L; ++i) {
    LayerActivations a = shared;
    if (kept.products) take_products(arena, a, c, N);
    if (kept.cheap) take_cheap(arena, a, c, N);
    b.layers.push_back(a);
  }
  return b;
}

// Gradients of activations, alive only during backward.
struct BackwardBuffers {
  float *dx, *dnorm;  // [N, H]
  float *dq, *datt;   // [N, Q·D]
  float *dk, *dv;     // [N, KV·D]
  float* dact;        // [N, F]; dgate and dup overwrite gate and up
  float* vector;      // [max(H, D)]: a norm's gradient
};

template <typename AnyArena>
BackwardBuffers take_backward(AnyArena& arena, const ModelConfig& c, int64_t N) {
  BackwardBuffers b{};
  b.dx = arena.template take<float>(N * c.H);
  b.dnorm = arena.template take<float>(N * c.H);
  b.dq = arena.template take<float>(N * c.Q * c.D);
  b.datt = arena.template take<float>(N * c.Q * c.D);
  b.dk = arena.template take<float>(N * c.KV * c.D);
  b.dv = arena.template take<float>(N * c.KV * c.D);
  b.dact = arena.template take<float>(N * c.F);
  b.vector = arena.template take<float>(c.H > c.D ? c.H : c.D);
  return b;
}

// Rows of the head whose logits are made at once for N tokens: about 32 MiB, never less than 64 rows.
constexpr int64_t head_chunk_rows(int64_t N, int64_t V) {
  const int64_t rows = (int64_t{32} << 20) / (4 * (N > 0 ? N : 1));
  const int64_t bounded = rows < 64 ? 64 : rows;
  return bounded < V ? bounded : V;
}

class Tape {
 public:
  Tape(Model& model, const TapeArgs& args);

  LayerPass pass(const Cpu& cpu) const {
    return {model, cpu, B, T, mask.empty() ? nullptr : mask.data(), buffers.cosines, buffers.sines};
  }
  int64_t N() const { return B * T; }

  Model& model;
  int64_t B, T;
  Recompute recompute;
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask;
  std::vector<int32_t> targets;  // [N] aligned labels once the loss is taken
  int64_t target_count = 0;
  bool consumed = false;
  uint64_t version;
  Arena arena;
  TapeBuffers buffers;
};

}  // namespace qn
