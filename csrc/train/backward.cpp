// The backward pass, layer by layer from the last. A weight reaches the sink after its value was last used, so a sink
// may change it at once (fused update).
#include <algorithm>
#include <cmath>

#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"
#include "train/tape_state.h"

namespace qn {

namespace {

void check_finite(const float* values, int64_t count, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) {
      fail(Code::kNonFiniteGradient, "the gradient of %s is %f at element %lld: nothing was updated", what,
           static_cast<double>(values[i]), (long long)i);
    }
  }
}

class Backward {
 public:
  Backward(Tape& tape, const float* dlogits, GradientSink& sink, const Cpu& cpu)
      : tape_(tape),
        model_(tape.model),
        c_(tape.model.config()),
        pass_(tape.pass(cpu)),
        dlogits_(dlogits),
        sink_(sink),
        cpu_(cpu),
        arena_(tape.model.device().ledger(), MemoryKind::kActivations, plan_bytes()),
        g_(take_backward(arena_, c_, tape.N())) {}

  void run(float scale) {
    weigh_tokens(scale);
    head();
    for (int64_t i = c_.L - 1; i >= 0; --i) layer(i);
    embedding();
  }

 private:
  int64_t N() const { return tape_.N(); }

  int64_t plan_bytes() const {
    ArenaPlan plan;
    take_backward(plan, c_, tape_.N());
    return plan.bytes();
  }

  void weigh_tokens(float scale) {
    if (dlogits_) return check_finite(dlogits_, N() * c_.V, "the loss with respect to the logits");
    check_finite(tape_.buffers.lse, N(), "the loss (log-sum-exp of the logits)");
    const float weight = tape_.target_count ? scale / static_cast<float>(tape_.target_count) : 0.0f;
    std::fill_n(tape_.buffers.weight, N(), weight);
  }

  // dlogits of head rows [begin, begin + count) as f32[N, count]: made again from the loss, or a view of the caller's.
  struct LogitsGradient {
    const float* data;
    int64_t stride;
  };
  LogitsGradient logits_gradient(int64_t begin, int64_t count) {
    if (dlogits_) return {dlogits_, c_.V};
    if (!chunk_) chunk_ = Buffer(model_.device().ledger(), MemoryKind::kScratch, N() * head_chunk_rows(N(), c_.V) * 4);
    float* logits = chunk_.as<float>();
    const TapeBuffers& b = tape_.buffers;
    linear_cpu(logits, b.final_norm, model_.head().view().slice_rows(begin, count), N(), false, cpu_);
    cross_entropy_gradient_cpu(logits, b.lse, tape_.targets.data(), b.weight, N(), count, begin, cpu_);
    return {logits, count};
  }

  void head_weight_rows(int64_t row_begin, int64_t row_count, float* dw, bool accumulate) {
    const int64_t chunk = head_chunk_rows(N(), c_.V);
    for (int64_t begin = row_begin; begin < row_begin + row_count; begin += chunk) {
      const int64_t count = std::min(chunk, row_begin + row_count - begin);
      const LogitsGradient g = logits_gradient(begin, count);
      linear_backward_weight_cpu({dw + (begin - row_begin) * c_.H, g.data, tape_.buffers.final_norm, N(), g.stride,
                                  c_.H, dlogits_ ? begin : 0, count, accumulate},
                                 cpu_);
    }
  }

  // dx = gradient at the output of the last layer.
  void head() {
    const int64_t chunk = head_chunk_rows(N(), c_.V);
    const WeightView w = model_.head().view();
    if (dlogits_) {
      linear_backward_input_cpu(g_.dnorm, dlogits_, w, N(), false, cpu_);
    } else {
      for (int64_t begin = 0; begin < c_.V; begin += chunk) {
        cpu_.check_cancelled();
        const int64_t count = std::min(chunk, c_.V - begin);
        const LogitsGradient g = logits_gradient(begin, count);
        linear_backward_input_cpu(g_.dnorm, g.data, w.slice_rows(begin, count), N(), begin > 0, cpu_);
      }
    }
    check_finite(g_.dnorm, N() * c_.H, "the final hidden states");
    if (!c_.tied && model_.head().trainable) {
      sink_.matrix(model_.head(), [this](int64_t row, int64_t count, float* dw, bool accumulate) {
        head_weight_rows(row, count, dw, accumulate);
      });
    }
    std::fill_n(g_.dx, N() * c_.H, 0.0f);
    norm_backward(model_.final_norm(), g_.dx, g_.dnorm, tape_.buffers.x.back(), tape_.buffers.final_inv_rms, N());
  }

  // dx += gradient through a norm; its weight's gradient goes to the sink.
  void norm_backward(Parameter& w, float* dx, const float* dy, const float* x, const float* inv_rms, int64_t rows) {
    std::vector<float> decoded(static_cast<size_t>(w.cols));
    float* dw = w.trainable ? g_.vector : nullptr;
    std::fill_n(g_.vector, w.cols, 0.0f);
    rms_norm_backward_cpu({dx, dw, dy, x, vector_values(w, decoded.data()), inv_rms, rows, w.cols}, cpu_);
    if (dw) sink_.vector(w, dw);
  }

  // dw = dyᵀ · x into the sink.
  void weight(Parameter& w, const float* dy, const float* x) {
    if (!w.trainable) return;
    sink_.matrix(w, [&](int64_t row, int64_t count, float* dw, bool accumulate) {
      linear_backward_weight_cpu({dw, dy, x, N(), w.rows, w.cols, row, count, accumulate}, cpu_);
    });
  }

  void input(float* dx, const float* dy, const Parameter& w, bool accumulate) {
    linear_backward_input_cpu(dx, dy, w.view(), N(), accumulate, cpu_);
  }

  void recompute(int64_t i, const float* x, const LayerActivations& a) {
    LayerParameters& p = model_.layer(i);
    const KeptParts kept = kept_parts(tape_.recompute);
    if (!kept.products) {
      layer_inside(pass_, i, x, a);
    } else if (!kept.cheap) {
      layer_norm_input(pass_, p, x, a);
      layer_rotate(pass_, p, a);
      layer_norm_mid(pass_, p, a);
      layer_activate(pass_, a);
    }
  }

  void layer(int64_t i) {
    const float* x = tape_.buffers.x[static_cast<size_t>(i)];
    const LayerActivations& a = tape_.buffers.layers[static_cast<size_t>(i)];
    recompute(i, x, a);
    mlp(model_.layer(i), a);
    attention(model_.layer(i), x, a);
  }

  // x_out = x_mid + down(swiglu(norm(x_mid))): dx becomes the gradient of x_mid.
  void mlp(LayerParameters& p, const LayerActivations& a) {
    input(g_.dact, g_.dx, *p.down_proj, false);
    weight(*p.down_proj, g_.dx, a.act);
    swiglu_backward_cpu(a.gate, a.up, g_.dact, a.gate, a.up, N() * c_.F, cpu_);  // gate, up now hold dgate, dup
    input(g_.dnorm, a.gate, *p.gate_proj, false);
    input(g_.dnorm, a.up, *p.up_proj, true);
    weight(*p.gate_proj, a.gate, a.mid_norm);
    weight(*p.up_proj, a.up, a.mid_norm);
    norm_backward(*p.post_norm, g_.dx, g_.dnorm, a.x_mid, a.mid_inv_rms, N());
  }

  // x_mid = x + o(attention(q, k, v)): dx becomes the gradient of x.
  void attention(LayerParameters& p, const float* x, const LayerActivations& a) {
    input(g_.datt, g_.dx, *p.o_proj, false);
    weight(*p.o_proj, g_.dx, a.att);
    const AttentionShape shape{tape_.B, tape_.T, c_.Q, c_.KV, c_.D};
    attention_backward_cpu({g_.dq, g_.dk, g_.dv, g_.datt, a.att, a.lse, a.q, a.k, a.v, pass_.mask, shape}, cpu_);
    head_norm_backward(*p.q_norm, g_.dq, a.q_raw, a.q_inv_rms, g_.datt, c_.Q);
    head_norm_backward(*p.k_norm, g_.dk, a.k_raw, a.k_inv_rms, g_.datt, c_.KV);
    input(g_.dnorm, g_.dq, *p.q_proj, false);
    input(g_.dnorm, g_.dk, *p.k_proj, true);
    input(g_.dnorm, g_.dv, *p.v_proj, true);
    weight(*p.q_proj, g_.dq, a.x_norm);
    weight(*p.k_proj, g_.dk, a.x_norm);
    weight(*p.v_proj, g_.dv, a.x_norm);
    norm_backward(*p.input_norm, g_.dx, g_.dnorm, x, a.x_inv_rms, N());
  }

  // d (after norm and rope) becomes the gradient of raw; `spare` f32[N, heads·D] holds the un-rotated gradient.
  void head_norm_backward(Parameter& w, float* d, const float* raw, const float* inv_rms, float* spare, int64_t heads) {
    const int64_t count = N() * heads * c_.D;
    rope_cpu(d, pass_.cosines, pass_.sines, N(), heads, c_.D, true, cpu_);
    std::copy_n(d, count, spare);
    std::fill_n(d, count, 0.0f);
    norm_backward(w, d, spare, raw, inv_rms, N() * heads);
  }

  // The embedding's gradient; when tied, the head's rows are added while they pass.
  void embedding() {
    Parameter& w = model_.embedding();
    if (!w.trainable) return;
    sink_.matrix(w, [this](int64_t row, int64_t count, float* dw, bool accumulate) {
      if (c_.tied) {
        head_weight_rows(row, count, dw, accumulate);
      } else if (!accumulate) {
        std::fill_n(dw, count * c_.H, 0.0f);
      }
      embedding_backward_cpu(dw, g_.dx, tape_.ids.data(), N(), c_.H, row, count, cpu_);
    });
  }

  Tape& tape_;
  Model& model_;
  const ModelConfig& c_;
  const LayerPass pass_;
  const float* dlogits_;
  GradientSink& sink_;
  const Cpu& cpu_;
  Buffer chunk_;
  Arena arena_;
  BackwardBuffers g_;
};

}  // namespace

void backward(Tape& tape, const float* dlogits, float scale, GradientSink& sink, const Cpu& cpu) {
  if (tape.consumed) fail(Code::kStaleGradient, "backward was already called on this result");
  if (tape.version != tape.model.version()) {
    fail(Code::kStaleGradient, "the weights changed since this forward pass: run it again before backward");
  }
  if (!dlogits && tape.targets.empty()) fail(Code::kInternal, "backward without labels or a logits gradient");
  tape.consumed = true;  // gate and up are overwritten below, so a second pass would be wrong
  Backward(tape, dlogits, sink, cpu).run(scale);
}

}  // namespace qn
