// One decoder layer, in the pieces that the forward pass runs and the backward pass recomputes.
//   x[N, H] → norm → q, k, v → norm, rope → attention → o → + x → x_mid[N, H]
//           → norm → gate, up → swiglu → down → + x_mid → x_out[N, H]          N = B · T
#pragma once

#include "model/engine.h"
#include "model/model.h"

namespace qn {

// Activations of one layer; norms and log-sum-exps are f32. Buffers may be shared between layers, or alias where noted,
// when nothing is kept.
struct LayerActivations {
  Activation* x_norm;    // [N, H]
  float* x_inv_rms;      // [N]
  Activation* q_raw;     // [N, Q·D] before the norm; may alias q
  Activation* k_raw;     // [N, KV·D]; may alias k
  Activation* v;         // [N, KV·D]
  Activation* q;         // [N, Q·D] after norm and rope
  Activation* k;         // [N, KV·D]
  float* q_inv_rms;      // [N, Q]
  float* k_inv_rms;      // [N, KV]
  Activation* att;       // [N, Q·D]
  float* lse;            // [N, Q]; null when not kept
  Activation* x_mid;     // [N, H]; may alias x
  Activation* mid_norm;  // [N, H]; may alias x_norm
  float* mid_inv_rms;    // [N]
  Activation* gate;      // [N, F]
  Activation* up;        // [N, F]
  Activation* act;       // [N, F]; may alias gate
};

// What every layer of one pass shares.
struct LayerPass {
  Model& model;
  Engine& engine;
  int64_t B, T;
  const uint8_t* mask;    // u8[B, T] or null
  const int32_t* starts;  // i32[B, T] or null
  const float* cosines;   // [N, D/2]
  const float* sines;
  KvCache* cache = nullptr;  // its own positions; B = 1
  bool reference = false;    // plain-loop products (ForwardArgs::reference)

  int64_t N() const { return B * T; }
};

// x → x_norm.
void layer_norm_input(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a);
// x → x_norm, q_raw, k_raw, v.
void layer_project(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a);
// q_raw, k_raw → q, k (norm, rope).
void layer_rotate(const LayerPass& pass, LayerParameters& p, const LayerActivations& a);
// q, k, v → att (writes the cache first when there is one).
void layer_attend(const LayerPass& pass, int64_t layer, const LayerActivations& a);
// x, att → x_mid.
void layer_attention_output(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a);
// x_mid → mid_norm.
void layer_norm_mid(const LayerPass& pass, LayerParameters& p, const LayerActivations& a);
// mid_norm → gate, up.
void layer_gate_up(const LayerPass& pass, LayerParameters& p, const LayerActivations& a);
// gate, up → act.
void layer_activate(const LayerPass& pass, const LayerActivations& a);
// x_mid, act → x_out (may alias x_mid).
void layer_output(const LayerPass& pass, LayerParameters& p, const LayerActivations& a, Activation* x_out);

// x → act: everything but layer_output, which is what a backward pass has to make again.
void layer_inside(const LayerPass& pass, int64_t layer, const Activation* x, const LayerActivations& a);
// x → x_out: the whole layer.
void layer_forward(const LayerPass& pass, int64_t layer, const Activation* x, const LayerActivations& a,
                   Activation* x_out);

}  // namespace qn
