// The memory of a forward pass without gradients, taken in one place from an Arena (to run) or an ArenaPlan (to
// estimate). activation_bytes: of one element, see model/engine.h.
#pragma once

#include "model/forward.h"
#include "model/layer.h"

namespace qn {

struct ForwardScratch {
  Activation* x;
  int32_t* ids;
  int32_t* starts;
  uint8_t* mask;
  float *cosines, *sines;
  LayerActivations a;
};

// `count` activations of `bytes` each.
template <typename AnyArena>
Activation* take_activations(AnyArena& arena, int64_t count, int64_t bytes) {
  return reinterpret_cast<Activation*>(arena.template take<char>(count * bytes));
}

// Nothing is kept between layers, so the residual stream and every norm are in place.
template <typename AnyArena>
ForwardScratch take_forward_scratch(AnyArena& arena, const ModelConfig& c, int64_t N, int64_t bytes) {
  const auto take = [&](int64_t count) { return take_activations(arena, count, bytes); };
  ForwardScratch s{};
  s.x = take(N * c.H);
  s.ids = arena.template take<int32_t>(N);
  s.starts = arena.template take<int32_t>(N);
  s.mask = arena.template take<uint8_t>(N);
  s.cosines = arena.template take<float>(N * (c.D / 2));
  s.sines = arena.template take<float>(N * (c.D / 2));
  LayerActivations& a = s.a;
  a.x_norm = a.mid_norm = take(N * c.H);
  a.q_raw = a.q = take(N * c.Q * c.D);
  a.k_raw = a.k = take(N * c.KV * c.D);
  a.v = take(N * c.KV * c.D);
  a.att = take(N * c.Q * c.D);
  a.x_mid = s.x;
  a.gate = a.act = take(N * c.F);
  a.up = take(N * c.F);
  return s;
}

struct ActivationPlan {
  int64_t activations = 0;  // arenas and results
  int64_t scratch = 0;      // logits chunk of the loss
};

// forward() or forward_cached() of B·T tokens, results included.
ActivationPlan plan_forward(const ModelConfig& config, int64_t B, int64_t T, LogitsWanted logits, bool hidden_states,
                            int64_t activation_bytes);

}  // namespace qn
