// The operations that passes through a model are made of, on the device that holds it. model/ and train/ are written
// once over this; ops/ has the formulas, the layouts and what each device guarantees.
//
// Pointers are to the memory of Device::ledger(). Activations and their gradients are f32 on the CPU and bf16 on CUDA;
// statistics, log-sum-exps, rope tables and gradients of vectors are f32 on both. Work is asked for in order and may
// run later (CUDA): only download(), all_finite() and copies between host and device wait.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "core/device.h"
#include "model/compute.h"
#include "model/kv_cache.h"
#include "model/parameter.h"
#include "ops/adamw.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"

namespace qn {

// One element of an activation; its size is known to the engine alone, see Engine::at().
struct Activation;

// Where Σ g² of each row of a gradient goes; null: nowhere. Where `stop` is not null, a step is refused at these rows
// when one is not finite: at once with Error(kNonFiniteGradient), or on CUDA by setting *stop to the parameter's id + 1
// unless it is set, after which adamw() does nothing.
struct RowSquares {
  double* rows = nullptr;
  const Parameter* parameter = nullptr;
  uint32_t* stop = nullptr;
};

// Rows of a matrix's gradient: f32, or on CUDA also bf16. Who makes them takes the squares too.
struct GradientRows {
  void* data = nullptr;
  bool bf16 = false;
  RowSquares squares = {};

  int64_t element_bytes() const { return bf16 ? 2 : 4; }
};

// Bytes of an activation element, for plans that are made without an engine.
constexpr int64_t activation_bytes(bool cuda) { return cuda ? 2 : 4; }

class Engine {
 public:
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Device& device() const { return device_; }
  const Cpu& cpu() const { return cpu_; }  // host threads, and what cancels the job
  int64_t activation_bytes() const { return activation_bytes_; }
  Activation* at(Activation* x, int64_t elements) const {
    return reinterpret_cast<Activation*>(reinterpret_cast<char*>(x) + elements * activation_bytes_);
  }
  const Activation* at(const Activation* x, int64_t elements) const {
    return reinterpret_cast<const Activation*>(reinterpret_cast<const char*>(x) + elements * activation_bytes_);
  }

  // --- Memory ---
  // `count` elements of the host where operations can read them: `host` itself on the CPU, else a copy in `scratch`.
  template <typename T>
  const T* upload(T* scratch, const T* host, int64_t count) {
    if (!device_.cuda() || !host) return host;
    device_.copy_in(scratch, host, count * static_cast<int64_t>(sizeof(T)));
    return scratch;
  }
  // `count` elements where the host can read them, once everything asked for before has run.
  template <typename T>
  void download(T* host, const T* from, int64_t count) {
    device_.copy_out(host, from, count * static_cast<int64_t>(sizeof(T)));
  }
  void copy(Activation* to, const Activation* from, int64_t count) {
    if (to != from) device_.copy(to, from, count * activation_bytes_);
  }
  virtual void fill(float* x, float value, int64_t count) = 0;
  virtual void widen(float* y, const Activation* x, int64_t count) = 0;
  virtual void narrow(Activation* y, const float* x, int64_t count) = 0;  // both on the device; rounds to nearest even

  // --- Forward ---
  // f32[N, D/2] of N positions, which are in host memory.
  virtual void rope_tables(float* cosines, float* sines, const std::vector<int32_t>& positions, int64_t D,
                           double base) = 0;
  virtual void embedding(Activation* x, const Parameter& w, const int32_t* ids, int64_t N) = 0;
  virtual void rms_norm(Activation* y, float* inv_rms, const Activation* x, const Parameter& w, int64_t rows,
                        float eps) = 0;
  virtual void linear(Activation* y, const Activation* x, const WeightView& w, int64_t N, bool accumulate) = 0;
  // Products of one x, one after the other, or on CUDA with few tokens at once: each as linear() has it.
  struct LinearPart {
    Activation* y;
    const Parameter& w;
  };
  virtual void linear_parts(std::initializer_list<LinearPart> parts, const Activation* x, int64_t N) {
    for (const LinearPart& part : parts) linear(part.y, x, part.w.view(), N, false);
  }
  // The same product with decoded weights and plain loops: path A of compareForwardPaths.
  virtual void linear_reference(Activation* y, const Activation* x, const WeightView& w, int64_t N,
                                bool accumulate) = 0;
  // f32[N, w.rows]; `reference` as above.
  virtual void logits(float* y, const Activation* x, const WeightView& w, int64_t N, bool reference) = 0;

  struct QkNormRope {
    Activation *q, *k;             // out [N, Q, D], [N, KV, D]; may alias q_raw, k_raw
    float *q_inv_rms, *k_inv_rms;  // out [N, Q], [N, KV]; may be null
    const Activation *q_raw, *k_raw;
    const Parameter &q_w, &k_w;
    const float *cosines, *sines;  // [N, D/2]
    int64_t N, Q, KV, D;
    float eps;
  };
  virtual void qk_norm_rope(const QkNormRope& args) = 0;
  virtual void attention(Activation* y, float* lse, const Activation* q, const Activation* k, const Activation* v,
                         const uint8_t* mask, const int32_t* starts, const AttentionShape& shape) = 0;
  // Writes k, v [T, KV, D] at the cache's next positions (reserve() first), then lets the T queries see them.
  virtual void attention_cached(Activation* y, const Activation* q, const Activation* k, const Activation* v,
                                KvCache& cache, int64_t layer, int64_t T, int64_t Q) = 0;
  virtual void swiglu(Activation* y, const Activation* gate, const Activation* up, int64_t count) = 0;

  // --- Loss ---
  virtual void cross_entropy_accumulate(const CrossEntropyState& state, const Activation* logits,
                                        const int32_t* targets, int64_t N, int64_t C, int64_t begin) = 0;
  virtual void cross_entropy_finish(float* lse, const CrossEntropyState& state, int64_t N) = 0;
  virtual void cross_entropy_gradient(Activation* logits, const float* lse, const int32_t* targets, const float* weight,
                                      int64_t N, int64_t C, int64_t begin) = 0;

  // --- Backward ---
  virtual void linear_backward_input(Activation* dx, const Activation* dy, const WeightView& w, int64_t N,
                                     bool accumulate) = 0;
  // dx = Σ of such products, one after the other, or on CUDA with few tokens at once and rounded once.
  struct LinearInputPart {
    const Activation* dy;
    const Parameter& w;
  };
  virtual void linear_backward_input_parts(Activation* dx, std::initializer_list<LinearInputPart> parts, int64_t N) {
    for (const LinearInputPart& part : parts) {
      linear_backward_input(dx, part.dy, part.w.view(), N, &part != parts.begin());
    }
  }
  struct WeightGradient {
    GradientRows dw;       // out [row_count, K]
    const Activation* dy;  // in [N, dy_cols]: columns [dy_begin, dy_begin + row_count) are the rows' outputs
    const Activation* x;   // in [N, K]
    int64_t N, K;
    int64_t dy_cols, dy_begin, row_count;
    bool accumulate;
  };
  // And its squares.
  virtual void linear_backward_weight(const WeightGradient& args) = 0;
  // dx += …, dw += … (dw may be null).
  virtual void rms_norm_backward(Activation* dx, float* dw, const Activation* dy, const Activation* x,
                                 const Parameter& w, const float* inv_rms, int64_t rows) = 0;
  struct HeadNormRopeBackward {
    Activation* d;      // in: gradient after norm and rope; out: gradient of raw. [N, heads, D]
    Activation* spare;  // [N, heads, D]
    float* dw;          // in/out f32[D], added to; may be null
    const Activation* raw;
    const Parameter& w;
    const float *inv_rms, *cosines, *sines;
    int64_t N, heads, D;
  };
  virtual void head_norm_rope_backward(const HeadNormRopeBackward& args) = 0;
  virtual void swiglu_backward(Activation* dgate, Activation* dup, const Activation* dy, const Activation* gate,
                               const Activation* up, int64_t count) = 0;
  struct Attention {
    Activation *dq, *dk, *dv;
    const Activation *dy, *y;
    const float* lse;
    const Activation *q, *k, *v;
    const uint8_t* mask;
    const int32_t* starts;
    AttentionShape shape;
  };
  virtual void attention_backward(const Attention& args) = 0;
  // dw f32 of rows [row_begin, row_begin + row_count) of the embedding, added to.
  virtual void embedding_backward(float* dw, const Activation* dx, const int32_t* ids, int64_t N, int64_t H,
                                  int64_t row_begin, int64_t row_count) = 0;

  // --- Gradients and their use ---
  // g.squares of rows that are complete, if they are asked for.
  virtual void row_squares(const GradientRows& g, int64_t row_count, int64_t K) = 0;
  // Every pointer of args on the device; args.stop is used on CUDA alone.
  virtual void adamw(AdamwRow* rows, const AdamwArgs& args) = 0;
  // A step of vectors as adamw_vectors_cuda() has it.
  virtual void adamw_vectors(UpdateTotals* totals, const std::vector<AdamwArgs>& vectors) = 0;
  // totals[parameter] of each range.
  virtual void sum_rows(UpdateTotals* totals, const AdamwRow* results, const double* squares,
                        const std::vector<RowRange>& ranges) = 0;
  virtual void store_rows(const StoreRowsArgs& args, const float* x) = 0;
  virtual void load_rows(float* x, const StoreRowsArgs& args) = 0;
  // sum += x.
  virtual void add(float* sum, const float* x, int64_t count) = 0;

  // --- Checks that wait ---
  virtual bool all_finite(const Activation* x, int64_t count) = 0;
  virtual bool all_finite(const float* x, int64_t count) = 0;

 protected:
  Engine(Device& device, const Cpu& cpu, int64_t activation_bytes)
      : device_(device), cpu_(cpu), activation_bytes_(activation_bytes) {}

 private:
  Device& device_;
  Cpu cpu_;
  int64_t activation_bytes_;
};

// One per job and device; on CUDA it holds scratch that grows with the products it was asked for. `compute` is of
// linear() and logits(): a forward pass gives the model's, one that is recorded for training never does.
std::unique_ptr<Engine> make_engine(Device& device, const Cpu& cpu, Compute compute = Compute::kW4A16);
std::unique_ptr<Engine> make_cpu_engine(Device& device, const Cpu& cpu);
std::unique_ptr<Engine> make_cuda_engine(Device& device, const Cpu& cpu, Compute compute);

}  // namespace qn
