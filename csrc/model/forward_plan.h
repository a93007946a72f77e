// The memory of a forward pass without gradients, taken in one place from an Arena (to run) or an ArenaPlan (to
// estimate).
#pragma once

#include "model/forward.h"
#include "model/layer.h"

namespace qn {

struct ForwardScratch {
  float *x, *cosines, *sines;
  LayerActivations a;
};

// Nothing is kept between layers, so the residual stream and every norm are in place.
template <typename AnyArena>
ForwardScratch take_forward_scratch(AnyArena& arena, const ModelConfig& c, int64_t N) {
  ForwardScratch s{};
  s.x = arena.template take<float>(N * c.H);
  s.cosines = arena.template take<float>(N * (c.D / 2));
  s.sines = arena.template take<float>(N * (c.D / 2));
  LayerActivations& a = s.a;
  a.x_norm = a.mid_norm = arena.template take<float>(N * c.H);
  a.q_raw = a.q = arena.template take<float>(N * c.Q * c.D);
  a.k_raw = a.k = arena.template take<float>(N * c.KV * c.D);
  a.v = arena.template take<float>(N * c.KV * c.D);
  a.att = arena.template take<float>(N * c.Q * c.D);
  a.x_mid = s.x;
  a.gate = a.act = arena.template take<float>(N * c.F);
  a.up = arena.template take<float>(N * c.F);
  return s;
}

}  // namespace qn
