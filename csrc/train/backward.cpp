// The backward pass, layer by layer from the last. A weight reaches the sink after its value was last used, so a sink
// may change it at once (fused update).
#include <algorithm>
#include <initializer_list>
#include <optional>
#include <vector>

#include "model/host_activations.h"
#include "train/tape_state.h"

namespace qn {

namespace {

void check_finite(bool finite, const char* key, const char* what) {
  if (!finite) fail_at(key, Code::kNonFiniteGradient, "the gradient of %s is not finite: nothing was updated", what);
}

class Backward {
 public:
  Backward(Tape& tape, const float* dlogits, GradientSink& sink, Engine& engine)
      : tape_(tape),
        model_(tape.model),
        c_(tape.model.config()),
        pass_(tape.pass(engine)),
        sink_(sink),
        engine_(engine),
        lowest_(lowest_trained_layer(model_.parameters(), c_)),
        arena_(tape.model.device().ledger(), MemoryKind::kActivations, plan_bytes()),
        g_(take_backward(arena_, c_, tape.N(), lowest_, engine.activation_bytes())) {
    if (dlogits) dlogits_.emplace(engine, dlogits, N() * c_.V);
  }

  void run(float scale) {
    weigh_tokens(scale);
    engine_.device().zero(g_.vectors, norm_elements(c_, lowest_) * 4);
    head();
    for (int64_t i = c_.L - 1; i >= lowest_; --i) layer(i);
    embedding();
    sink_.vectors(vectors_);
  }

 private:
  int64_t N() const { return tape_.N(); }

  int64_t plan_bytes() const {
    ArenaPlan plan;
    take_backward(plan, c_, tape_.N(), lowest_, tape_.activation_bytes);
    return plan.bytes();
  }

  void weigh_tokens(float scale) {
    if (tape_.hidden_gradient) {
      auto* gradient = tape_.hidden_gradient.as<float>();
      for (int64_t i = 0; i < N() * c_.H; ++i) gradient[i] *= scale;
      return;
    }
    if (dlogits_) {
      return check_finite(engine_.all_finite(dlogits_->get(), N() * c_.V), "dLogits",
                          "the loss with respect to the logits");
    }
    if (!engine_.all_finite(tape_.buffers.lse, N())) {
      const std::string module = first_non_finite(tape_, engine_.cpu());
      fail_at(module, Code::kNonFiniteGradient,
              "the loss is not finite, first in the output of %s: nothing was updated", module.c_str());
    }
    const float weight = tape_.target_count ? scale / static_cast<float>(tape_.target_count) : 0.0f;
    engine_.fill(tape_.buffers.weight, weight, N());
  }

  // dlogits of head rows [begin, begin + count): made again from the loss, or columns of the caller's.
  struct LogitsGradient {
    const Activation* data;
    int64_t cols, begin;
  };
  LogitsGradient logits_gradient(int64_t begin, int64_t count) {
    if (dlogits_) return {dlogits_->get(), c_.V, begin};
    if (!chunk_) {
      chunk_ =
          Buffer(model_.device().ledger(), MemoryKind::kScratch, N() * tape_.head_chunk() * engine_.activation_bytes());
    }
    auto* logits = chunk_.as<Activation>();
    const TapeBuffers& b = tape_.buffers;
    engine_.linear(logits, b.final_norm, model_.head().view().slice_rows(begin, count), N(), false);
    engine_.cross_entropy_gradient(logits, b.lse, tape_.device_targets, b.weight, N(), count, begin);
    return {logits, count, 0};
  }

  void head_weight_rows(int64_t row_begin, int64_t row_count, GradientRows dw, bool accumulate) {
    const int64_t chunk = tape_.head_chunk(), row_bytes = c_.H * dw.element_bytes();
    for (int64_t begin = row_begin; begin < row_begin + row_count; begin += chunk) {
      const int64_t count = std::min(chunk, row_begin + row_count - begin);
      const LogitsGradient g = logits_gradient(begin, count);
      const GradientRows rows{static_cast<char*>(dw.data) + (begin - row_begin) * row_bytes, dw.bf16};
      engine_.linear_backward_weight(
          {rows, g.data, tape_.buffers.final_norm, N(), c_.H, g.cols, g.begin, count, accumulate});
    }
  }

  // dx = gradient at the output of the last layer.
  void head() {
    const bool through = lowest_ < c_.L || model_.final_norm().trainable;
    if (through) final_gradient();
    if (!c_.tied && model_.head().trainable && !tape_.hidden_gradient) {
      sink_.matrix(model_.head(), [this](int64_t row, int64_t count, GradientRows dw, bool accumulate) {
        head_weight_rows(row, count, dw, accumulate);
        engine_.row_squares(dw, count, c_.H);
      });
    }
    if (!through) return;
    engine_.device().zero(g_.dx, N() * c_.H * engine_.activation_bytes());
    norm_backward(model_.final_norm(), g_.dx, g_.dnorm, tape_.buffers.x.back(), tape_.buffers.final_inv_rms);
  }

  // dnorm = gradient of the final hidden states.
  void final_gradient() {
    const int64_t chunk = tape_.head_chunk();
    const WeightView w = model_.head().view();
    if (tape_.hidden_gradient) {
      const HostActivations gradient(engine_, tape_.hidden_gradient.as<float>(), N() * c_.H);
      engine_.copy(g_.dnorm, gradient.get(), N() * c_.H);
    } else if (dlogits_) {
      engine_.linear_backward_input(g_.dnorm, dlogits_->get(), w, N(), false);
    } else {
      for (int64_t begin = 0; begin < c_.V; begin += chunk) {
        engine_.cpu().check_cancelled();
        const int64_t count = std::min(chunk, c_.V - begin);
        const LogitsGradient g = logits_gradient(begin, count);
        engine_.linear_backward_input(g_.dnorm, g.data, w.slice_rows(begin, count), N(), begin > 0);
      }
    }
    check_finite(engine_.all_finite(g_.dnorm, N() * c_.H), "hiddenStates", "the final hidden states");
  }

  // A place for a norm's gradient, zero yet, or null when it is not trained.
  float* vector_gradient(Parameter& w) {
    if (!w.trainable) return nullptr;
    float* dw = g_.vectors + vector_elements_;
    vector_elements_ += w.cols;
    vectors_.push_back({&w, dw});
    return dw;
  }

  // dx += gradient through a norm; its weight's gradient is left for the sink.
  void norm_backward(Parameter& w, Activation* dx, const Activation* dy, const Activation* x, const float* inv_rms) {
    engine_.rms_norm_backward(dx, vector_gradient(w), dy, x, w, inv_rms, N());
  }

  // dw = dyᵀ · x into the sink.
  void weight(Parameter& w, const Activation* dy, const Activation* x) {
    if (!w.trainable) return;
    sink_.matrix(w, [&](int64_t row, int64_t count, GradientRows dw, bool accumulate) {
      engine_.linear_backward_weight({dw, dy, x, N(), w.cols, w.rows, row, count, accumulate});
    });
  }

  void input(Activation* dx, const Activation* dy, const Parameter& w) {
    engine_.linear_backward_input(dx, dy, w.view(), N(), false);
  }

  void recompute(int64_t i, const Activation* x, const LayerActivations& a) {
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
    const Activation* x = tape_.buffers.x[static_cast<size_t>(i)];
    const LayerActivations& a = tape_.buffers.layers[static_cast<size_t>(i)];
    recompute(i, x, a);
    LayerParameters& p = model_.layer(i);
    const bool below = i > lowest_ || model_.embedding().trainable;
    const bool attends = below || trains({p.input_norm, p.q_proj, p.k_proj, p.v_proj, p.q_norm, p.k_norm, p.o_proj});
    mlp(p, a, attends);
    if (attends) attention(p, x, a, below);
  }

  static bool trains(std::initializer_list<const Parameter*> parameters) {
    return std::any_of(parameters.begin(), parameters.end(), [](const Parameter* p) { return p->trainable; });
  }

  // x_out = x_mid + down(swiglu(norm(x_mid))): dx becomes the gradient of x_mid where `further` asks for it.
  void mlp(LayerParameters& p, const LayerActivations& a, bool further) {
    const bool through = further || p.post_norm->trainable;
    input(g_.dact, g_.dx, *p.down_proj);
    weight(*p.down_proj, g_.dx, a.act);
    engine_.swiglu_backward(a.gate, a.up, g_.dact, a.gate, a.up, N() * c_.F);  // gate, up now hold dgate, dup
    if (through) {
      engine_.linear_backward_input_parts(g_.dnorm, {{a.gate, *p.gate_proj}, {a.up, *p.up_proj}}, N());
    }
    weight(*p.gate_proj, a.gate, a.mid_norm);
    weight(*p.up_proj, a.up, a.mid_norm);
    if (through) norm_backward(*p.post_norm, g_.dx, g_.dnorm, a.x_mid, a.mid_inv_rms);
  }

  // x_mid = x + o(attention(q, k, v)): dx becomes the gradient of x where `further` asks for it.
  void attention(LayerParameters& p, const Activation* x, const LayerActivations& a, bool further) {
    const bool through = further || p.input_norm->trainable;
    const AttentionShape shape = {tape_.B, tape_.T, c_.Q, c_.KV, c_.D};
    input(g_.datt, g_.dx, *p.o_proj);
    weight(*p.o_proj, g_.dx, a.att);
    engine_.attention_backward(
        {g_.dq, g_.dk, g_.dv, g_.datt, a.att, a.lse, a.q, a.k, a.v, pass_.mask, pass_.starts, shape});
    head_norm_backward(*p.q_norm, g_.dq, a.q_raw, a.q_inv_rms, g_.datt, c_.Q);
    head_norm_backward(*p.k_norm, g_.dk, a.k_raw, a.k_inv_rms, g_.datt, c_.KV);
    if (through) {
      engine_.linear_backward_input_parts(g_.dnorm, {{g_.dq, *p.q_proj}, {g_.dk, *p.k_proj}, {g_.dv, *p.v_proj}}, N());
    }
    weight(*p.q_proj, g_.dq, a.x_norm);
    weight(*p.k_proj, g_.dk, a.x_norm);
    weight(*p.v_proj, g_.dv, a.x_norm);
    if (through) norm_backward(*p.input_norm, g_.dx, g_.dnorm, x, a.x_inv_rms);
  }

  // d (after norm and rope) becomes the gradient of raw; `spare` [N, heads·D] is scratch.
  void head_norm_backward(Parameter& w, Activation* d, const Activation* raw, const float* inv_rms, Activation* spare,
                          int64_t heads) {
    engine_.head_norm_rope_backward(
        {d, spare, vector_gradient(w), raw, w, inv_rms, pass_.cosines, pass_.sines, N(), heads, c_.D});
  }

  // The embedding's gradient; when tied, the head's rows are added while they pass.
  void embedding() {
    Parameter& w = model_.embedding();
    if (!w.trainable) return;
    sink_.matrix(w, [this](int64_t row, int64_t count, GradientRows dw, bool accumulate) {
      if (dw.bf16) fail(Code::kInternal, "rows of the embedding's gradient are f32");
      if (c_.tied && !tape_.hidden_gradient) {
        head_weight_rows(row, count, dw, accumulate);
      } else if (!accumulate) {
        engine_.device().zero(dw.data, count * c_.H * 4);
      }
      engine_.embedding_backward(static_cast<float*>(dw.data), g_.dx, tape_.device_ids, N(), c_.H, row, count);
      engine_.row_squares(dw, count, c_.H);
    });
  }

  Tape& tape_;
  Model& model_;
  const ModelConfig& c_;
  const LayerPass pass_;
  GradientSink& sink_;
  Engine& engine_;
  const int64_t lowest_;                    // layer to go down to
  std::optional<HostActivations> dlogits_;  // [N, V], a caller's
  Buffer chunk_;                            // [N, head_chunk()]
  Arena arena_;
  BackwardBuffers g_;
  std::vector<GradientSink::Vector> vectors_;  // in g_.vectors, one after the other
  int64_t vector_elements_ = 0;
};

}  // namespace

void backward(Tape& tape, const float* dlogits, float scale, GradientSink& sink, const Cpu& cpu) {
  if (tape.consumed) fail(Code::kStaleGradient, "backward was already called on this result");
  if (tape.version != tape.model.version()) {
    fail(Code::kStaleGradient, "the weights changed since this forward pass: run it again before backward");
  }
  if (lowest_trained_layer(tape.model.parameters(), tape.model.config()) < tape.lowest) {
    fail(Code::kStaleGradient,
         "a parameter came to train that this forward pass kept nothing for: run it again before backward");
  }
  if (!dlogits && tape.targets.empty() && !tape.hidden_gradient) {
    fail(Code::kInternal, "backward without a loss or a logits gradient");
  }
  tape.consumed = true;  // gate and up are overwritten below, so a second pass would be wrong
  const auto engine = make_engine(tape.model.device(), cpu);
  Backward(tape, dlogits, sink, *engine).run(scale);
}

}  // namespace qn
