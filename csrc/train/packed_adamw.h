// AdamW whose whole state is packed: see ops/adamw.h for one row and docs/numerics.md for why it converges.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/adamw.h"
#include "train/gradient_store.h"

namespace qn {

struct AdamwOptions {
  WeightMode weights = WeightMode::kNvfp4;      // of parameters stored in NVFP4; dense ones are updated in place
  MomentFormat moments = MomentFormat::kNvfp4;  // of matrices with K % 16 == 0; everything else has f32 moments
  bool residual_in_forward = true;              // kNvfp4Residual: whether the forward pass sees the residual
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;
  bool decay_vectors = true;  // false: norms are not decayed
  uint64_t seed = 0;
  int64_t step_chunk_rows = 1024;  // rows of a gradient that exist at once; changes memory, never results
};

struct StepArgs {
  double lr = 0;
  double max_grad_norm = 0;    // 0: no clipping
  double skip_above_norm = 0;  // 0: never
};

struct StepStats {
  int64_t step = 0;       // this step's number, from 1; the last one's where this was skipped
  double grad_norm = 0;   // over every gradient of the step, before clipping
  double clip_scale = 1;  // what the gradients were multiplied with
  double update_rms = 0;  // √mean u²; much above AdamW's own means that noise in v acts as a larger rate
  double flipped = 0;     // fraction of NVFP4 weight codes that changed
  int64_t elements = 0;   // elements that were updated
  bool skipped = false;   // an outlier: nothing was touched, and no step was counted
};

class PackedAdamW {
 public:
  // Allocates the state of every trainable parameter (kMoments). With kNvfp4Residual it gives parameters that have no
  // residual one of zeros, and goes on from those that a loaded model has. `model` must outlive the optimizer and keep
  // its storage.
  PackedAdamW(Model& model, const AdamwOptions& options, const Cpu& cpu);
  ~PackedAdamW();

  const AdamwOptions& options() const { return options_; }
  int64_t step_count() const { return step_; }
  int64_t state_bytes() const;  // moments, masters and residuals
  // What the constructor would allocate for one parameter, for plans.
  static int64_t state_bytes(const Parameter& parameter, const AdamwOptions& options);
  // Bytes of scratch that a step holds besides: a chunk of a gradient, and what is known of each row. bf16_rows: of a
  // fused step on CUDA. `parameters` in the order of parameter_specs(); they need no memory.
  static int64_t scratch_bytes(const std::deque<Parameter>& parameters, const AdamwOptions& options, bool bf16_rows);
  // As much of that as the next step will allocate.
  int64_t missing_scratch_bytes(bool bf16_rows) const;

  // One step on kept gradients (of parameters that have some), clipped to max_grad_norm by their exact norm, or none
  // when that is above skip_above_norm. Everything is checked before anything is touched: Error(kNonFiniteGradient)
  // names the tensor, and cpu.cancel counts until then. Once begun, a step runs to its end. Does not zero the
  // gradients.
  StepStats step(const GradientStore& gradients, const StepArgs& args, const Cpu& cpu);
  // What a step that is not taken reports.
  StepStats skipped_step() const;

  // One step whose gradients are never stored: hand it to backward(), then finish().
  class FusedStep : public GradientSink {
   public:
    ~FusedStep() override;
    // Produces up to step_chunk_rows rows at a time and updates them at once, and vectors together after all matrices.
    // Rows that are not finite, and every row after them, stay untouched, as does a vector that is not finite:
    // Error(kNonFiniteGradient) names the tensor, here or in finish(). What came before has then been updated.
    void matrix(Parameter& parameter, const Produce& produce) override;
    void vectors(const std::vector<Vector>& vectors) override;
    StepStats finish();

   private:
    friend class PackedAdamW;
    FusedStep(PackedAdamW& optimizer, std::unique_ptr<Engine> engine)
        : optimizer_(optimizer), engine_(std::move(engine)) {}
    PackedAdamW& optimizer_;
    std::unique_ptr<Engine> engine_;
    bool finished_ = false;
  };
  // Clips by the norm of the PREVIOUS step's gradients, as this step's is known only at its end: the first one by that
  // of a norm pass, or not at all. The step number advances here: a step that is dropped without finish() (an error in
  // backward) still counts, and its parameters that were not reached are as before. One at a time: Error(kBusy).
  std::unique_ptr<FusedStep> begin_fused_step(double lr, double max_grad_norm, const Cpu& cpu);

  // A backward pass that measures and changes nothing: hand it to backward(), then finish(), and the next fused step
  // clips by its norm. An unclipped first gradient would outweigh the clipped ones after it in v, and keep updates
  // small for 1 / (1 - beta2) steps.
  class NormPass : public GradientSink {
   public:
    void matrix(Parameter& parameter, const Produce& produce) override;
    void vectors(const std::vector<Vector>& vectors) override;
    // Error(kNonFiniteGradient) names the first tensor that has a NaN or infinity.
    void finish();

   private:
    friend class PackedAdamW;
    NormPass(PackedAdamW& optimizer, std::unique_ptr<Engine> engine)
        : optimizer_(optimizer), engine_(std::move(engine)) {}
    PackedAdamW& optimizer_;
    std::unique_ptr<Engine> engine_;
  };
  bool knows_norm() const { return last_grad_norm_ >= 0; }
  std::unique_ptr<NormPass> begin_norm_pass(const Cpu& cpu);

  // The whole state in one file, written beside `path` and renamed: resuming from it and the saved model continues bit
  // for bit. load() refuses another model's names, shapes, storage or other weights/moments modes
  // (Error(kStateMismatch) says what differs) and a short file (kTruncated); nothing changes then. A read that fails
  // after these checks (kIo) leaves a fresh state. It takes step, seed, betas, eps and decay from the file.
  void save(const std::string& path, const Cpu& cpu) const;
  void load(const std::string& path, const Cpu& cpu);

  // The bias-corrected moments f32[rows, cols] of a parameter that trains; returns t of its bias correction.
  int64_t read_moments(const Parameter& parameter, float* m, float* v, const Cpu& cpu);
  // Stores such moments, v >= 0: exactly as fp32, nearest as bf16, else rounded as a step does. The step number becomes
  // `updates` if it was lower, and the next step is not clipped by the norm of one before it.
  void write_moments(const Parameter& parameter, const float* m, const float* v, int64_t updates, const Cpu& cpu);

 private:
  struct Moment {
    Buffer values, scales, rows;
    MomentView view() const;
  };
  struct State {
    MomentFormat format = MomentFormat::kFp32;
    Moment m, v;
    Buffer master;
    double global_scale = 1;   // the parameter's before it is rounded to f32, so that small decays add up
    int64_t updates = 0;       // t of its bias correction: a parameter may miss steps
    uint64_t overwrites = 0;   // Parameter::overwrites when the master was last taken from the parameter
    int64_t updated_step = 0;  // the last step that reached it
    bool active = false;
  };

  State& active_state(const Parameter& parameter);
  void make_state(Parameter& parameter);
  void initialize_master(const Parameter& parameter, State& state);
  void make_missing_states();
  void prepare(bool bf16_rows);
  void begin(double lr, double clip_scale, bool bf16_rows);
  // Gives rows [row_begin, row_begin + row_count) of a gradient, and their squares.
  using Rows = std::function<GradientRows(int64_t row_begin, int64_t row_count, const RowSquares& squares)>;
  Rows produced_rows(const Parameter& parameter, const GradientSink::Produce& produce);
  void measure(const Parameter& parameter, const Rows& gradient, Engine& engine);
  void update(Parameter& parameter, const Rows& gradient, bool checked, Engine& engine);
  void update_vectors(const std::vector<GradientSink::Vector>& vectors, Engine& engine);
  AdamwArgs begin_update(const Parameter& parameter);
  int64_t pending_begin(const Parameter& parameter, Engine& engine);
  void sum_pending(Engine& engine);
  AdamwArgs step_args(const Parameter& parameter, State& state);
  int64_t chunk_rows(const Parameter& parameter) const;
  struct Scratch {
    int64_t gradient = 0, results = 0, squares = 0, totals = 0;
    int64_t bytes() const { return gradient + results + squares + totals + static_cast<int64_t>(sizeof(uint32_t)); }
  };
  static Scratch plan_scratch(const std::deque<Parameter>& parameters, const AdamwOptions& options, bool bf16_rows);
  void leave_step();
  void settle(Engine& engine);
  void widen_range(Parameter& parameter, State& state);
  StepStats end(Engine& engine);

  struct Range {
    void* data;
    int64_t bytes;
  };
  std::vector<Range> ranges(const Parameter& parameter) const;  // of the state file, in its order
  std::string file_header() const;
  void reset();

  Model& model_;
  AdamwOptions options_;
  std::vector<State> states_;  // by parameter id
  int64_t step_ = 0;
  double last_grad_norm_ = -1;  // of the last step or norm pass, for late clipping; < 0: none yet

  // Of the step in progress.
  bool in_step_ = false, touched_ = false;
  double lr_ = 0;
  StepStats stats_;
  int64_t code_elements_ = 0;
  Buffer gradient_rows_;                       // one chunk
  Buffer row_results_, row_squares_, totals_;  // of rows of some parameters; UpdateTotals by parameter id
  std::vector<RowRange> pending_;              // rows there whose totals are still to be taken, one after the other
  Buffer stop_;                                // u32: see RowSquares
};

}  // namespace qn
