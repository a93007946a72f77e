#include "model/layer.h"

namespace qn {

namespace {

// y = x · wᵀ of each part.
void project(const LayerPass& pass, std::initializer_list<Engine::LinearPart> parts, const Activation* x) {
  if (!pass.reference) return pass.engine.linear_parts(parts, x, pass.N());
  for (const Engine::LinearPart& part : parts) {
    pass.engine.linear_reference(part.y, x, part.w.view(), pass.N(), false);
  }
}

// y += x · wᵀ.
void add_projection(const LayerPass& pass, Activation* y, const Activation* x, const Parameter& w) {
  if (pass.reference) return pass.engine.linear_reference(y, x, w.view(), pass.N(), true);
  pass.engine.linear(y, x, w.view(), pass.N(), true);
}

void norm(const LayerPass& pass, Activation* y, float* inv_rms, const Activation* x, const Parameter& w) {
  pass.engine.rms_norm(y, inv_rms, x, w, pass.N(), pass.model.config().eps);
}

}  // namespace

void layer_norm_input(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a) {
  norm(pass, a.x_norm, a.x_inv_rms, x, *p.input_norm);
}

void layer_project(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a) {
  layer_norm_input(pass, p, x, a);
  project(pass, {{a.q_raw, *p.q_proj}, {a.k_raw, *p.k_proj}, {a.v, *p.v_proj}}, a.x_norm);
}

void layer_rotate(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  const ModelConfig& c = pass.model.config();
  pass.engine.qk_norm_rope({a.q, a.k, a.q_inv_rms, a.k_inv_rms, a.q_raw, a.k_raw, *p.q_norm, *p.k_norm, pass.cosines,
                            pass.sines, pass.N(), c.Q, c.KV, c.D, c.eps});
}

void layer_attend(const LayerPass& pass, int64_t layer, const LayerActivations& a) {
  const ModelConfig& c = pass.model.config();
  if (pass.cache) return pass.engine.attention_cached(a.att, a.q, a.k, a.v, *pass.cache, layer, pass.T, c.Q);
  pass.engine.attention(a.att, a.lse, a.q, a.k, a.v, pass.mask, pass.starts, {pass.B, pass.T, c.Q, c.KV, c.D});
}

void layer_attention_output(const LayerPass& pass, LayerParameters& p, const Activation* x, const LayerActivations& a) {
  pass.engine.copy(a.x_mid, x, pass.N() * pass.model.config().H);
  add_projection(pass, a.x_mid, a.att, *p.o_proj);
}

void layer_norm_mid(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  norm(pass, a.mid_norm, a.mid_inv_rms, a.x_mid, *p.post_norm);
}

void layer_gate_up(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  project(pass, {{a.gate, *p.gate_proj}, {a.up, *p.up_proj}}, a.mid_norm);
}

void layer_activate(const LayerPass& pass, const LayerActivations& a) {
  pass.engine.swiglu(a.act, a.gate, a.up, pass.N() * pass.model.config().F);
}

void layer_output(const LayerPass& pass, LayerParameters& p, const LayerActivations& a, Activation* x_out) {
  pass.engine.copy(x_out, a.x_mid, pass.N() * pass.model.config().H);
  add_projection(pass, x_out, a.act, *p.down_proj);
}

void layer_inside(const LayerPass& pass, int64_t layer, const Activation* x, const LayerActivations& a) {
  LayerParameters& p = pass.model.layer(layer);
  layer_project(pass, p, x, a);
  layer_rotate(pass, p, a);
  layer_attend(pass, layer, a);
  layer_attention_output(pass, p, x, a);
  layer_norm_mid(pass, p, a);
  layer_gate_up(pass, p, a);
  layer_activate(pass, a);
}

void layer_forward(const LayerPass& pass, int64_t layer, const Activation* x, const LayerActivations& a,
                   Activation* x_out) {
  layer_inside(pass, layer, x, a);
  layer_output(pass, pass.model.layer(layer), a, x_out);
}

}  // namespace qn
