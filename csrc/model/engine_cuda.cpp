#include "core/status.h"
#include "model/engine.h"

#if defined(QN_WITH_CUDA)

#include <algorithm>
#include <vector>

#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gemv_backward_input.h"
#include "ops/gemv_backward_weight.h"
#include "ops/kv_cache_write.h"
#include "ops/linear.h"
#include "ops/linear_w4a4.h"
#include "ops/qk_norm_rope.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

// Most new tokens of attention_decode_cuda.
constexpr int64_t kMostDecodeTokens = 8;

uint16_t* bf16(Activation* x) { return reinterpret_cast<uint16_t*>(x); }
const uint16_t* bf16(const Activation* x) { return reinterpret_cast<const uint16_t*>(x); }

class CudaEngine : public Engine {
 public:
  CudaEngine(Device& device, const Cpu& cpu, Compute compute)
      : Engine(device, cpu, qn::activation_bytes(true)),
        cuda_(*device.cuda()),
        stream_(cuda_.stream()),
        compute_(compute) {}

  void fill(float* x, float value, int64_t count) override { fill_cuda(x, value, count, stream_); }
  void widen(float* y, const Activation* x, int64_t count) override { widen_bf16_cuda(y, bf16(x), count, stream_); }
  void narrow(Activation* y, const float* x, int64_t count) override { narrow_bf16_cuda(bf16(y), x, count, stream_); }

  void rope_tables(float* cosines, float* sines, const std::vector<int32_t>& positions, int64_t D,
                   double base) override {
    const auto count = static_cast<int64_t>(positions.size());
    const Buffer on_device(device().ledger(), MemoryKind::kScratch, count * 4);
    device().copy_in(on_device.data(), positions.data(), count * 4);
    rope_table_cuda(cosines, sines, on_device.as<int32_t>(), count, D, base, stream_);
  }

  void embedding(Activation* x, const Parameter& w, const int32_t* ids, int64_t N) override {
    embedding_cuda(bf16(x), w.view(), ids, N, stream_);
  }

  void rms_norm(Activation* y, float* inv_rms, const Activation* x, const Parameter& w, int64_t rows,
                float eps) override {
    rms_norm_cuda(bf16(y), inv_rms, bf16(x), vector(w, vector_), rows, w.cols, eps, stream_);
  }

  void linear(Activation* y, const Activation* x, const WeightView& w, int64_t N, bool accumulate) override {
    product(y, CudaFloat::kBF16, x, w, N, accumulate);
  }

  void linear_parts(std::initializer_list<LinearPart> parts, const Activation* x, int64_t N) override {
    GemvCudaArgs args{};
    args.matrix_count = 0;
    args.x = bf16(x);
    args.T = N;
    bool packed = N <= kGemvTokens && parts.size() <= kGemvMatrices;
    for (const LinearPart& part : parts) {
      const WeightView w = part.w.view();
      packed = packed && w.storage == Storage::kNvfp4 && gemv_nvfp4_fits_cuda(w.cols);
      if (!packed) return Engine::linear_parts(parts, x, N);
      args.K = w.cols;
      args.matrices[args.matrix_count++] = {part.y, w.rows, w.packed, w.residual};
    }
    gemv_nvfp4_cuda(args, stream_);
  }

  void linear_reference(Activation* y, const Activation* x, const WeightView& w, int64_t N, bool accumulate) override {
    linear_reference_cuda(y, CudaFloat::kBF16, bf16(x), w, N, accumulate, stream_);
  }

  void logits(float* y, const Activation* x, const WeightView& w, int64_t N, bool reference) override {
    if (reference) return linear_reference_cuda(y, CudaFloat::kF32, bf16(x), w, N, false, stream_);
    product(y, CudaFloat::kF32, x, w, N, false);
  }

  void qk_norm_rope(const QkNormRope& a) override {
    qk_norm_rope_cuda(
        {bf16(a.q), bf16(a.k), a.q_inv_rms, a.k_inv_rms, bf16(a.q_raw), bf16(a.k_raw), vector(a.q_w, vector_),
         vector(a.k_w, other_vector_), a.cosines, a.sines, a.N, a.Q, a.KV, a.D, a.eps},
        stream_);
  }

  void attention(Activation* y, float* lse, const Activation* q, const Activation* k, const Activation* v,
                 const uint8_t* mask, const int32_t* starts, const AttentionShape& shape) override {
    attention_cuda({bf16(y), lse, bf16(q), bf16(k), bf16(v), mask, starts, shape}, stream_);
  }

  void attention_cached(Activation* y, const Activation* q, const Activation* k, const Activation* v, KvCache& cache,
                        int64_t layer, int64_t T, int64_t Q) override {
    const int64_t KV = cache.config().KV, D = cache.config().D, offset = cache.seq_len();
    const KvCache::DevicePages pages = cache.device_pages(layer);
    kv_cache_write_cuda({pages.k, pages.v, kPageTokens, offset, nullptr}, bf16(k), bf16(v), T, KV, D, stream_);
    if (T <= kMostDecodeTokens) {
      AttentionDecodeCuda args{bf16(y), bf16(q), pages.k, pages.v, nullptr, offset, nullptr, kPageTokens, T, Q, KV, D};
      args.scratch = grow(attention_, attention_decode_scratch_bytes(args)).as<float>();
      return attention_decode_cuda(args, stream_);
    }
    AttentionPagedCuda args{bf16(y), bf16(q), pages.k, pages.v, nullptr, offset, kPageTokens, T, Q, KV, D};
    args.scratch = grow(attention_, attention_paged_scratch_bytes(args)).as<float>();
    attention_paged_cuda(args, stream_);
  }

  void swiglu(Activation* y, const Activation* gate, const Activation* up, int64_t count) override {
    swiglu_cuda(bf16(y), bf16(gate), bf16(up), count, stream_);
  }

  void cross_entropy_accumulate(const CrossEntropyState& state, const Activation* logits, const int32_t* targets,
                                int64_t N, int64_t C, int64_t begin) override {
    cross_entropy_accumulate_cuda(state, bf16(logits), targets, N, C, begin, stream_);
  }
  void cross_entropy_finish(float* lse, const CrossEntropyState& state, int64_t N) override {
    cross_entropy_finish_cuda(lse, state, N, stream_);
  }
  void cross_entropy_gradient(Activation* logits, const float* lse, const int32_t* targets, const float* weight,
                              int64_t N, int64_t C, int64_t begin) override {
    cross_entropy_gradient_cuda(bf16(logits), lse, targets, weight, N, C, begin, stream_);
  }

  void linear_backward_input(Activation* dx, const Activation* dy, const WeightView& w, int64_t N,
                             bool accumulate) override {
    const WeightView dense = as_product_operand(w);
    const int64_t bytes = linear_backward_input_cuda_scratch_bytes(dense, N);
    linear_backward_input_cuda(bf16(dx), bf16(dy), dense, N, accumulate, products(bytes));
  }

  void linear_backward_input_parts(Activation* dx, std::initializer_list<LinearInputPart> parts, int64_t N) override {
    GemvBackwardInputCuda args{.dx = bf16(dx), .T = N};
    WeightView weights[kGemvInputWeights];
    for (const LinearInputPart& part : parts) {
      const WeightView w = part.w.view();
      const bool packed =
          N <= kGemvInputTokens && w.storage == Storage::kNvfp4 && args.weight_count < kGemvInputWeights;
      if (!packed) return Engine::linear_backward_input_parts(dx, parts, N);
      args.dy[args.weight_count] = bf16(part.dy);
      args.dy_strides[args.weight_count] = w.rows;
      weights[args.weight_count++] = w;
    }
    args.weights = weights;
    args.scratch = products(gemv_backward_input_scratch_bytes(weights, args.weight_count, N)).scratch;
    gemv_backward_input_cuda(args, stream_);
  }

  void linear_backward_weight(const WeightGradient& a) override {
    if (a.dy_cols != a.row_count && a.dy_begin % 8 != 0) {
      fail(Code::kInternal, "rows of a weight's gradient begin at a multiple of 8 on CUDA");
    }
    const RowSquares& squares = a.dw.squares;
    const bool few = a.N <= kGemvWeightTokens && a.K % 4 == 0;
    if (few && squares.rows && a.dw.bf16 && !a.accumulate) {
      return gemv_backward_weight_cuda({static_cast<uint16_t*>(a.dw.data), squares.rows, bf16(a.dy) + a.dy_begin,
                                        bf16(a.x), a.N, a.row_count, a.K, a.dy_cols, stop_flag(squares)},
                                       stream_);
    }
    linear_backward_weight_cuda({a.dw.data, bf16(a.dy), bf16(a.x), a.N, a.dy_cols, a.K, a.dy_begin, a.row_count,
                                 a.dw.bf16 ? CudaFloat::kBF16 : CudaFloat::kF32, a.accumulate},
                                products(linear_backward_weight_cuda_scratch_bytes()));
    row_squares(a.dw, a.row_count, a.K);
  }

  void rms_norm_backward(Activation* dx, float* dw, const Activation* dy, const Activation* x, const Parameter& w,
                         const float* inv_rms, int64_t rows) override {
    norm_backward(dx, dw, dy, x, w, inv_rms, rows, true);
  }

  void head_norm_rope_backward(const HeadNormRopeBackward& a) override {
    rope_cuda(bf16(a.d), a.cosines, a.sines, a.N, a.heads, a.D, true, stream_);
    norm_backward(a.d, a.dw, a.d, a.raw, a.w, a.inv_rms, a.N * a.heads, false);
  }

  void swiglu_backward(Activation* dgate, Activation* dup, const Activation* dy, const Activation* gate,
                       const Activation* up, int64_t count) override {
    swiglu_backward_cuda(bf16(dgate), bf16(dup), bf16(dy), bf16(gate), bf16(up), count, stream_);
  }

  void attention_backward(const Attention& a) override {
    float* scratch = grow(attention_, attention_backward_scratch_bytes(a.shape)).as<float>();
    attention_backward_cuda({bf16(a.dq), bf16(a.dk), bf16(a.dv), bf16(a.dy), bf16(a.y), a.lse, bf16(a.q), bf16(a.k),
                             bf16(a.v), a.mask, a.starts, scratch, a.shape},
                            stream_);
  }

  void embedding_backward(float* dw, const Activation* dx, const int32_t* ids, int64_t N, int64_t H, int64_t row_begin,
                          int64_t row_count) override {
    embedding_backward_cuda(dw, bf16(dx), ids, N, H, row_begin, row_count, stream_);
  }

  void row_squares(const GradientRows& g, int64_t row_count, int64_t K) override {
    double* squares = g.squares.rows;
    if (!squares) return;
    const StopFlag stop = stop_flag(g.squares);
    if (g.bf16) {
      return row_squares_bf16_cuda(squares, static_cast<const uint16_t*>(g.data), row_count, K, stop, stream_);
    }
    row_squares_cuda(squares, static_cast<const float*>(g.data), row_count, K, stop, stream_);
  }

  void adamw(AdamwRow* rows, const AdamwArgs& args) override { adamw_cuda(rows, args, stream_); }

  void adamw_vectors(UpdateTotals* totals, const std::vector<AdamwArgs>& vectors) override {
    adamw_vectors_cuda(totals, vectors.data(), static_cast<int64_t>(vectors.size()), stream_);
  }

  void sum_rows(UpdateTotals* totals, const AdamwRow* results, const double* squares,
                const std::vector<RowRange>& ranges) override {
    sum_rows_cuda(totals, results, squares, ranges.data(), static_cast<int64_t>(ranges.size()), stream_);
  }

  void store_rows(const StoreRowsArgs& args, const float* x) override { store_rows_cuda(args, x, stream_); }
  void load_rows(float* x, const StoreRowsArgs& args) override { load_rows_cuda(x, args, stream_); }
  void add(float* sum, const float* x, int64_t count) override { add_cuda(sum, x, count, stream_); }

  bool all_finite(const Activation* x, int64_t count) override {
    return !flagged([&](uint32_t* flag) { find_non_finite_bf16_cuda(flag, bf16(x), count, stream_); });
  }
  bool all_finite(const float* x, int64_t count) override {
    return !flagged([&](uint32_t* flag) { find_non_finite_cuda(flag, x, count, stream_); });
  }

 private:
  static StopFlag stop_flag(const RowSquares& squares) { return {squares.stop, squares.parameter->id + 1}; }

  // Freed and allocated in the order of the stream, so what was launched on the old memory still finds it.
  const Buffer& grow(Buffer& buffer, int64_t bytes) {
    if (buffer.bytes() >= bytes) return buffer;
    buffer = Buffer();
    buffer = Buffer(device().ledger(), MemoryKind::kScratch, bytes);
    return buffer;
  }

  // Always exactly `bytes`, so that a product's slices do not depend on the products before it.
  LinearCuda products(int64_t bytes) { return {cuda_.blas(), grow(products_, bytes).data(), bytes, stream_}; }

  // A norm's weight as f32: its own memory, or widened into `scratch`.
  const float* vector(const Parameter& w, Buffer& scratch) {
    if (w.storage == Storage::kF32) return w.dense.as<float>();
    float* wide = grow(scratch, w.cols * 4).as<float>();
    const auto* bits = w.dense.as<uint16_t>();
    if (w.storage == Storage::kF16) {
      widen_f16_cuda(wide, bits, w.cols, stream_);
    } else {
      widen_bf16_cuda(wide, bits, w.cols, stream_);
    }
    return wide;
  }

  // Products take packed weights and bf16: f32 and f16 weights are rounded to bf16 first.
  WeightView as_product_operand(const WeightView& w) {
    if (w.storage != Storage::kF32 && w.storage != Storage::kF16) return w;
    const int64_t count = w.rows * w.cols;
    auto* rounded = grow(rounded_, count * 2).as<uint16_t>();
    if (w.storage == Storage::kF32) {
      narrow_bf16_cuda(rounded, static_cast<const float*>(w.dense), count, stream_);
    } else {
      f16_to_bf16_cuda(rounded, static_cast<const uint16_t*>(w.dense), count, stream_);
    }
    WeightView view = w;
    view.storage = Storage::kBF16;
    view.dense = rounded;
    return view;
  }

  void product(void* y, CudaFloat type, const Activation* x, const WeightView& w, int64_t N, bool accumulate) {
    if (compute_ == Compute::kW4A4 && w.storage == Storage::kNvfp4 && N > kGemvTokens) {
      const int64_t bytes = linear_w4a4_scratch_bytes(w.rows, w.cols, N);
      return linear_w4a4_cuda(y, type, bf16(x), w, N, accumulate, products(bytes));
    }
    const WeightView dense = as_product_operand(w);
    // A few tokens read a packed weight as it is.
    const bool fits =
        dense.storage == Storage::kBnb4 || (dense.storage == Storage::kNvfp4 && gemv_nvfp4_fits_cuda(dense.cols));
    const bool packed = fits && N <= kGemvTokens;
    linear_cuda(y, type, bf16(x), dense, N, accumulate, products(packed ? 0 : linear_cuda_scratch_bytes(dense)));
  }

  void norm_backward(Activation* dx, float* dw, const Activation* dy, const Activation* x, const Parameter& w,
                     const float* inv_rms, int64_t rows, bool accumulate) {
    float* scratch = grow(norm_, rms_norm_backward_scratch_bytes(rows, w.cols)).as<float>();
    rms_norm_backward_cuda(
        {bf16(dx), dw, bf16(dy), bf16(x), vector(w, vector_), inv_rms, scratch, rows, w.cols, accumulate}, stream_);
  }

  template <typename Find>
  bool flagged(const Find& find) {
    auto* flag = grow(flag_, sizeof(uint32_t)).as<uint32_t>();
    device().zero(flag, sizeof(uint32_t));
    find(flag);
    uint32_t found = 0;
    download(&found, flag, 1);
    return found != 0;
  }

  CudaContext& cuda_;
  CudaStream stream_;
  Compute compute_;
  Buffer products_, rounded_, attention_, norm_, vector_, other_vector_, flag_;
};

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(Device& device, const Cpu& cpu, Compute compute) {
  return std::make_unique<CudaEngine>(device, cpu, compute);
}

}  // namespace qn

#else

namespace qn {

std::unique_ptr<Engine> make_cuda_engine(Device&, const Cpu&, Compute) {
  fail(Code::kInternal, "a CUDA device in a build without CUDA");
}

}  // namespace qn

#endif
