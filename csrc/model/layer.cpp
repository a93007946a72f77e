#include "model/layer.h"

#include <cstring>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

void project(const LayerPass& pass, float* y, const float* x, const Parameter& w, bool accumulate = false) {
  if (!pass.reference) return linear_cpu(y, x, w.view(), pass.N(), accumulate, pass.cpu);
  if (!accumulate) return linear_reference_cpu(y, x, w.view(), pass.N(), pass.cpu);
  std::vector<float> product(static_cast<size_t>(pass.N() * w.rows));
  linear_reference_cpu(product.data(), x, w.view(), pass.N(), pass.cpu);
  for (size_t i = 0; i < product.size(); ++i) y[i] += product[i];
}

void norm(const LayerPass& pass, float* y, float* inv_rms, const float* x, const Parameter& w, int64_t rows) {
  std::vector<float> scratch(w.storage == Storage::kF32 ? 0 : static_cast<size_t>(w.cols));
  rms_norm_cpu(y, inv_rms, x, vector_values(w, scratch.data()), rows, w.cols, pass.model.config().eps, pass.cpu);
}

void copy_rows(float* to, const float* from, int64_t count) {
  if (to != from) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

const float* vector_values(const Parameter& parameter, float* scratch) {
  if (parameter.storage == Storage::kF32) return parameter.dense.as<float>();
  const auto* bits = parameter.dense.as<uint16_t>();
  for (int64_t i = 0; i < parameter.cols; ++i) {
    scratch[i] = parameter.storage == Storage::kF16 ? f16_to_f32(bits[i]) : bf16_to_f32(bits[i]);
  }
  return scratch;
}

void fill_rope_tables(float* cosines, float* sines, const ModelConfig& config, int64_t B, int64_t T, int64_t offset,
                      const Cpu& cpu) {
  std::vector<int32_t> positions(static_cast<size_t>(T));
  for (int64_t t = 0; t < T; ++t) positions[static_cast<size_t>(t)] = static_cast<int32_t>(offset + t);
  const int64_t table = T * (config.D / 2);
  rope_table_cpu(cosines, sines, positions.data(), T, config.D, config.rope_base, cpu);
  for (int64_t b = 1; b < B; ++b) {
    copy_rows(cosines + b * table, cosines, table);
    copy_rows(sines + b * table, sines, table);
  }
}

void layer_norm_input(const LayerPass& pass, LayerParameters& p, const float* x, const LayerActivations& a) {
  norm(pass, a.x_norm, a.x_inv_rms, x, *p.input_norm, pass.N());
}

void layer_project(const LayerPass& pass, LayerParameters& p, const float* x, const LayerActivations& a) {
  layer_norm_input(pass, p, x, a);
  project(pass, a.q_raw, a.x_norm, *p.q_proj);
  project(pass, a.k_raw, a.x_norm, *p.k_proj);
  project(pass, a.v, a.x_norm, *p.v_proj);
}

void layer_rotate(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  const ModelConfig& c = pass.model.config();
  norm(pass, a.q, a.q_inv_rms, a.q_raw, *p.q_norm, pass.N() * c.Q);
  norm(pass, a.k, a.k_inv_rms, a.k_raw, *p.k_norm, pass.N() * c.KV);
  rope_cpu(a.q, pass.cosines, pass.sines, pass.N(), c.Q, c.D, false, pass.cpu);
  rope_cpu(a.k, pass.cosines, pass.sines, pass.N(), c.KV, c.D, false, pass.cpu);
}

void layer_attend(const LayerPass& pass, int64_t layer, const LayerActivations& a) {
  const ModelConfig& c = pass.model.config();
  if (!pass.cache) {
    const AttentionShape shape{pass.B, pass.T, c.Q, c.KV, c.D};
    return attention_cpu({a.att, a.lse, a.q, a.k, a.v, pass.mask, shape}, pass.cpu);
  }
  pass.cache->write(layer, a.k, a.v, pass.T, pass.cpu);
  std::vector<const void*> k_pages, v_pages;
  pass.cache->pages(layer, k_pages, v_pages);
  attention_cached_cpu({a.att, a.q, k_pages.data(), v_pages.data(), pass.cache->dtype(), kPageTokens, pass.T,
                        pass.cache->seq_len(), c.Q, c.KV, c.D},
                       pass.cpu);
}

void layer_attention_output(const LayerPass& pass, LayerParameters& p, const float* x, const LayerActivations& a) {
  copy_rows(a.x_mid, x, pass.N() * pass.model.config().H);
  project(pass, a.x_mid, a.att, *p.o_proj, true);
}

void layer_norm_mid(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  norm(pass, a.mid_norm, a.mid_inv_rms, a.x_mid, *p.post_norm, pass.N());
}

void layer_gate_up(const LayerPass& pass, LayerParameters& p, const LayerActivations& a) {
  project(pass, a.gate, a.mid_norm, *p.gate_proj);
  project(pass, a.up, a.mid_norm, *p.up_proj);
}

void layer_activate(const LayerPass& pass, const LayerActivations& a) {
  swiglu_cpu(a.act, a.gate, a.up, pass.N() * pass.model.config().F, pass.cpu);
}

void layer_output(const LayerPass& pass, LayerParameters& p, const LayerActivations& a, float* x_out) {
  copy_rows(x_out, a.x_mid, pass.N() * pass.model.config().H);
  project(pass, x_out, a.act, *p.down_proj, true);
}

void layer_inside(const LayerPass& pass, int64_t layer, const float* x, const LayerActivations& a) {
  LayerParameters& p = pass.model.layer(layer);
  layer_project(pass, p, x, a);
  layer_rotate(pass, p, a);
  layer_attend(pass, layer, a);
  layer_attention_output(pass, p, x, a);
  layer_norm_mid(pass, p, a);
  layer_gate_up(pass, p, a);
  layer_activate(pass, a);
}

void layer_forward(const LayerPass& pass, int64_t layer, const float* x, const LayerActivations& a, float* x_out) {
  layer_inside(pass, layer, x, a);
  layer_output(pass, pass.model.layer(layer), a, x_out);
}

}  // namespace qn
