#include "model/config.h"

namespace qn {

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c) {
  std::vector<ParameterSpec> specs;
  const auto matrix = [&](std::string name, int64_t rows, int64_t cols) {
    specs.push_back({std::move(name), rows, cols, false});
  };
  const auto vector = [&](std::string name, int64_t count) { specs.push_back({std::move(name), 1, count, true}); };

  matrix("model.embed_tokens.weight", c.V, c.H);
  for (int64_t i = 0; i < c.L; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    vector(layer + "input_layernorm.weight", c.H);
    matrix(layer + "self_attn.q_proj.weight", c.Q * c.D, c.H);
    matrix(layer + "self_attn.k_proj.weight", c.KV * c.D, c.H);
    matrix(layer + "self_attn.v_proj.weight", c.KV * c.D, c.H);
    vector(layer + "self_attn.q_norm.weight", c.D);
    vector(layer + "self_attn.k_norm.weight", c.D);
    matrix(layer + "self_attn.o_proj.weight", c.H, c.Q * c.D);
    vector(layer + "post_attention_layernorm.weight", c.H);
    matrix(layer + "mlp.gate_proj.weight", c.F, c.H);
    matrix(layer + "mlp.up_proj.weight", c.F, c.H);
    matrix(layer + "mlp.down_proj.weight", c.H, c.F);
  }
  vector("model.norm.weight", c.H);
  if (!c.tied) matrix("lm_head.weight", c.V, c.H);
  return specs;
}

}  // namespace qn
