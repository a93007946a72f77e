// The products of a decoded token on CUDA as chains (ops/decode_chain.h), one between any two attentions: q, k and v of
// the first layer; of each layer o, gate and up, down, and then q, k and v of the next or the head.
#pragma once

#include <functional>
#include <vector>

#include "model/model.h"
#include "ops/decode_chain.h"

namespace qn {

class DecodeChains {
 public:
  // Of one token, on the device.
  struct Rows {
    uint16_t* x;          // in and out bf16[H]: the embedding, then the residual stream
    uint16_t* qkv;        // out bf16[(Q + 2·KV)·D]
    const uint16_t* att;  // in bf16[Q·D]
    float* logits;        // out f32[V]
    const int32_t* position;
  };
  using NormWeight = std::function<const float*(const Parameter&)>;

  // Whether the current device can run this model's products so.
  static bool fit(Model& model);

  DecodeChains(Model& model, const Rows& rows, const NormWeight& norm_weight);
  // x → q, k, v of the first layer.
  void begin(CudaStream stream) { launch(0, stream); }
  // att, x → x and q, k, v of the next layer, or logits.
  void after_attention(int64_t layer, CudaStream stream) { launch(static_cast<size_t>(layer) + 1, stream); }

 private:
  // Messages of o, SwiGLU and down, of all layers in turn.
  struct Messages {
    uint64_t *o, *act, *down;
  };
  std::vector<ChainProduct> layer_products(Model& model, int64_t index, const Messages& messages,
                                           const NormWeight& norm_weight) const;
  void launch(size_t index, CudaStream stream);

  Rows rows_;
  float eps_;
  Buffer messages_, stages_;
  std::vector<ChainPlan> plans_;
  std::vector<size_t> first_stages_;  // of each plan, in stages_
};

}  // namespace qn
