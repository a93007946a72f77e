// The shape of a Qwen3 dense decoder, as config.json gives it. lib/model/config.ts parses and validates; nothing here
// is a constant of one checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qn {

struct ModelConfig {
  int64_t H = 0;         // hidden_size
  int64_t L = 0;         // num_hidden_layers
  int64_t Q = 0;         // num_attention_heads
  int64_t KV = 0;        // num_key_value_heads
  int64_t D = 0;         // head_dim
  int64_t F = 0;         // intermediate_size
  int64_t V = 0;         // vocab_size
  double rope_base = 0;  // rope_theta
  float eps = 0;         // rms_norm_eps
  bool tied = false;     // the head is the embedding: no lm_head parameter exists
};

// A parameter as the checkpoint names it. Vectors (norms) have rows = 1 and is_vector.
struct ParameterSpec {
  std::string name;
  int64_t rows = 0, cols = 0;
  bool is_vector = false;
};

// Every parameter in the fixed order that addresses random bits and optimizer state:
// embed_tokens; per layer input_layernorm, q_proj, k_proj, v_proj, q_norm, k_norm, o_proj, post_attention_layernorm,
// gate_proj, up_proj, down_proj; norm; lm_head unless tied.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
constexpr int64_t kLayerParameters = 11;

}  // namespace qn
