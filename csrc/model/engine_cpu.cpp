#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model/engine.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

float* f32(Activation* x) { return reinterpret_cast<float*>(x); }
const float* f32(const Activation* x) { return reinterpret_cast<const float*>(x); }

// The values of a norm vector: its own memory, or decoded.
class VectorValues {
 public:
  explicit VectorValues(const Parameter& w) {
    if (w.storage == Storage::kF32) {
      values_ = w.dense.as<float>();
      return;
    }
    decoded_.resize(static_cast<size_t>(w.cols));
    const auto* bits = w.dense.as<uint16_t>();
    for (size_t i = 0; i < decoded_.size(); ++i) {
      decoded_[i] = w.storage == Storage::kF16 ? f16_to_f32(bits[i]) : bf16_to_f32(bits[i]);
    }
    values_ = decoded_.data();
  }
  const float* get() const { return values_; }

 private:
  std::vector<float> decoded_;
  const float* values_;
};

class CpuEngine : public Engine {
 public:
  CpuEngine(Device& device, const Cpu& cpu) : Engine(device, cpu, qn::activation_bytes(false)) {}

  void fill(float* x, float value, int64_t count) override { std::fill_n(x, count, value); }
  void widen(float* y, const Activation* x, int64_t count) override { std::copy_n(f32(x), count, y); }
  void narrow(Activation* y, const float* x, int64_t count) override { std::copy_n(x, count, f32(y)); }

  void rope_tables(float* cosines, float* sines, const std::vector<int32_t>& positions, int64_t D,
                   double base) override {
    rope_table_cpu(cosines, sines, positions.data(), static_cast<int64_t>(positions.size()), D, base, cpu());
  }

  void embedding(Activation* x, const Parameter& w, const int32_t* ids, int64_t N) override {
    embedding_cpu(f32(x), w.view(), ids, N, cpu());
  }

  void rms_norm(Activation* y, float* inv_rms, const Activation* x, const Parameter& w, int64_t rows,
                float eps) override {
    rms_norm_cpu(f32(y), inv_rms, f32(x), VectorValues(w).get(), rows, w.cols, eps, cpu());
  }

  void linear(Activation* y, const Activation* x, const WeightView& w, int64_t N, bool accumulate) override {
    linear_cpu(f32(y), f32(x), w, N, accumulate, cpu());
  }

  void linear_reference(Activation* y, const Activation* x, const WeightView& w, int64_t N, bool accumulate) override {
    if (!accumulate) return linear_reference_cpu(f32(y), f32(x), w, N, cpu());
    std::vector<float> product(static_cast<size_t>(N * w.rows));
    linear_reference_cpu(product.data(), f32(x), w, N, cpu());
    for (size_t i = 0; i < product.size(); ++i) f32(y)[i] += product[i];
  }

  void logits(float* y, const Activation* x, const WeightView& w, int64_t N, bool reference) override {
    if (reference) return linear_reference_cpu(y, f32(x), w, N, cpu());
    linear_cpu(y, f32(x), w, N, false, cpu());
  }

  void qk_norm_rope(const QkNormRope& a) override {
    rms_norm(a.q, a.q_inv_rms, a.q_raw, a.q_w, a.N * a.Q, a.eps);
    rms_norm(a.k, a.k_inv_rms, a.k_raw, a.k_w, a.N * a.KV, a.eps);
    rope_cpu(f32(a.q), a.cosines, a.sines, a.N, a.Q, a.D, false, cpu());
    rope_cpu(f32(a.k), a.cosines, a.sines, a.N, a.KV, a.D, false, cpu());
  }

  void attention(Activation* y, float* lse, const Activation* q, const Activation* k, const Activation* v,
                 const uint8_t* mask, const int32_t* starts, const AttentionShape& shape) override {
    attention_cpu({f32(y), lse, f32(q), f32(k), f32(v), mask, starts, shape}, cpu());
  }

  void attention_cached(Activation* y, const Activation* q, const Activation* k, const Activation* v, KvCache& cache,
                        int64_t layer, int64_t T, int64_t Q) override {
    cache.write(layer, f32(k), f32(v), T, cpu());
    std::vector<const void*> k_pages, v_pages;
    cache.pages(layer, k_pages, v_pages);
    attention_cached_cpu({f32(y), f32(q), k_pages.data(), v_pages.data(), cache.dtype(), kPageTokens, T,
                          cache.seq_len(), Q, cache.config().KV, cache.config().D},
                         cpu());
  }

  void swiglu(Activation* y, const Activation* gate, const Activation* up, int64_t count) override {
    swiglu_cpu(f32(y), f32(gate), f32(up), count, cpu());
  }

  void cross_entropy_accumulate(const CrossEntropyState& state, const Activation* logits, const int32_t* targets,
                                int64_t N, int64_t C, int64_t begin) override {
    cross_entropy_accumulate_cpu(state, f32(logits), targets, N, C, begin, cpu());
  }
  void cross_entropy_finish(float* lse, const CrossEntropyState& state, int64_t N) override {
    cross_entropy_finish_cpu(lse, state, N);
  }
  void cross_entropy_gradient(Activation* logits, const float* lse, const int32_t* targets, const float* weight,
                              int64_t N, int64_t C, int64_t begin) override {
    cross_entropy_gradient_cpu(f32(logits), lse, targets, weight, N, C, begin, cpu());
  }

  void linear_backward_input(Activation* dx, const Activation* dy, const WeightView& w, int64_t N,
                             bool accumulate) override {
    linear_backward_input_cpu(f32(dx), f32(dy), w, N, accumulate, cpu());
  }

  void linear_backward_weight(const WeightGradient& a) override {
    linear_backward_weight_cpu({static_cast<float*>(a.dw.data), f32(a.dy), f32(a.x), a.N, a.dy_cols, a.K, a.dy_begin,
                                a.row_count, a.accumulate},
                               cpu());
    row_squares(a.dw, a.row_count, a.K);
  }

  void rms_norm_backward(Activation* dx, float* dw, const Activation* dy, const Activation* x, const Parameter& w,
                         const float* inv_rms, int64_t rows) override {
    rms_norm_backward_cpu({f32(dx), dw, f32(dy), f32(x), VectorValues(w).get(), inv_rms, rows, w.cols}, cpu());
  }

  void head_norm_rope_backward(const HeadNormRopeBackward& a) override {
    const int64_t count = a.N * a.heads * a.D;
    rope_cpu(f32(a.d), a.cosines, a.sines, a.N, a.heads, a.D, true, cpu());
    std::copy_n(f32(a.d), count, f32(a.spare));
    std::fill_n(f32(a.d), count, 0.0f);
    rms_norm_backward(a.d, a.dw, a.spare, a.raw, a.w, a.inv_rms, a.N * a.heads);
  }

  void swiglu_backward(Activation* dgate, Activation* dup, const Activation* dy, const Activation* gate,
                       const Activation* up, int64_t count) override {
    swiglu_backward_cpu(f32(dgate), f32(dup), f32(dy), f32(gate), f32(up), count, cpu());
  }

  void attention_backward(const Attention& a) override {
    attention_backward_cpu({f32(a.dq), f32(a.dk), f32(a.dv), f32(a.dy), f32(a.y), a.lse, f32(a.q), f32(a.k), f32(a.v),
                            a.mask, a.starts, a.shape},
                           cpu());
  }

  void embedding_backward(float* dw, const Activation* dx, const int32_t* ids, int64_t N, int64_t H, int64_t row_begin,
                          int64_t row_count) override {
    embedding_backward_cpu(dw, f32(dx), ids, N, H, row_begin, row_count, cpu());
  }

  void row_squares(const GradientRows& g, int64_t row_count, int64_t K) override {
    const auto [squares, parameter, stop] = g.squares;
    if (!squares) return;
    row_squares_cpu(squares, static_cast<const float*>(g.data), row_count, K, cpu());
    if (!stop || std::all_of(squares, squares + row_count, [](double value) { return std::isfinite(value); })) return;
    fail_at(parameter->name, Code::kNonFiniteGradient, "the gradient of %s is not finite", parameter->name.c_str());
  }

  void adamw(AdamwRow* rows, const AdamwArgs& args) override { adamw_cpu(rows, args, cpu()); }

  void adamw_vectors(UpdateTotals* totals, const std::vector<AdamwArgs>& vectors) override {
    for (const AdamwArgs& args : vectors) {
      UpdateTotals& total = totals[args.parameter] = {};
      row_squares_cpu(&total.gradient_squares, args.g, 1, args.K, cpu());
      if (!std::isfinite(total.gradient_squares)) continue;
      AdamwRow row;
      adamw_cpu(&row, args, cpu());
      total.update_squares = row.update_squares;
    }
  }

  void sum_rows(UpdateTotals* totals, const AdamwRow* results, const double* squares,
                const std::vector<RowRange>& ranges) override {
    for (const RowRange& range : ranges) {
      UpdateTotals& sum = totals[range.parameter] = {};
      for (int64_t row = range.begin; row < range.begin + range.count; ++row) {
        if (range.measured) sum.gradient_squares += squares[row];
        if (!range.updated) continue;
        sum.update_squares += results[row].update_squares;
        sum.changed_codes += results[row].changed_codes;
        sum.saturated += results[row].saturated;
      }
    }
  }

  void store_rows(const StoreRowsArgs& args, const float* x) override { store_rows_cpu(args, x, cpu()); }
  void load_rows(float* x, const StoreRowsArgs& args) override { load_rows_cpu(x, args, cpu()); }
  void add(float* sum, const float* x, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) sum[i] += x[i];
  }

  bool all_finite(const Activation* x, int64_t count) override { return all_finite(f32(x), count); }
  bool all_finite(const float* x, int64_t count) override {
    return std::all_of(x, x + count, [](float value) { return std::isfinite(value); });
  }
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(Device& device, const Cpu& cpu) {
  return std::make_unique<CpuEngine>(device, cpu);
}

}  // namespace qn
