// Gradients that are kept: summed over micro-batches in f32, bf16 or NVFP4 (both rounded stochastically).
#pragma once

#include <vector>

#include "model/model.h"
#include "ops/adamw.h"
#include "train/gradient_sink.h"

namespace qn {

enum class GradientFormat : uint8_t { kFp32, kBf16, kNvfp4 };

// Each NVFP4 accumulation adds its own rounding error: relative error .23 after 4 micro-batches, .40 after 16.
constexpr int32_t kMaxNvfp4MicroBatches = 4;

// √Σ gradient_squares over UpdateTotals[parameters] on the device, by parameter id. Error(kNonFiniteGradient) names the
// first parameter whose gradient has a NaN or infinity.
double gradient_norm(Model& model, const Buffer& totals, Engine& engine);

class GradientStore : public GradientSink {
 public:
  struct Options {
    GradientFormat format = GradientFormat::kFp32;
    uint64_t seed = 0;
    bool allow_many = false;         // more than kMaxNvfp4MicroBatches in NVFP4
    int64_t step_chunk_rows = 1024;  // rows in f32 at once while a packed gradient is added to
  };

  // Holds memory for a parameter from its first gradient on. `model` must outlive the store.
  GradientStore(Model& model, const Options& options);

  // Adds. Frozen parameters are ignored. Vectors and matrices with K % 16 != 0 are always f32.
  // Error(kUnsupported) for a fifth NVFP4 micro-batch, before anything is added.
  void matrix(Parameter& parameter, const Produce& produce) override;
  void vectors(const std::vector<Vector>& vectors) override;

  bool has(const Parameter& parameter) const { return entry(parameter).micro_batches > 0; }
  bool is_f32() const { return options_.format == GradientFormat::kFp32; }
  // Sums added since zero(), of the parameter that has most.
  int32_t micro_batches() const;
  // Rows as f32 on the device: a pointer into the store when it holds f32, else `scratch` f32[row_count, K] filled.
  const float* rows(const Parameter& parameter, int64_t row_begin, int64_t row_count, float* scratch,
                    Engine& engine) const;
  // √Σ g² over every gradient here. Error(kNonFiniteGradient) names the first tensor that has a NaN or infinity.
  double norm(Engine& engine) const;
  // Forgets the sums, keeps the memory. `optimizer_step` (steps taken so far) addresses the random bits of the next
  // sums, so that a resumed run draws what the uninterrupted one would have drawn.
  void zero(int64_t optimizer_step);
  // Gives the memory back.
  void release();
  // Bytes that a gradient in this form takes.
  static int64_t bytes_of(const Parameter& parameter, GradientFormat format);
  // Bytes of scratch while it is added to.
  static int64_t scratch_bytes(const Parameter& parameter, const Options& options);
  // Bytes that the next backward pass will allocate.
  int64_t missing_bytes() const;
  int64_t bytes() const;

 private:
  struct Entry {
    MomentFormat format = MomentFormat::kFp32;
    Buffer values, scales, rows;
    int32_t micro_batches = 0;
  };
  const Entry& entry(const Parameter& parameter) const { return entries_[parameter.id]; }
  Entry& open(const Parameter& parameter);
  StoreRowsArgs store_args(const Parameter& parameter, const Entry& entry, int64_t row_begin, int64_t row_count) const;

  Model& model_;
  Options options_;
  std::vector<Entry> entries_;  // by parameter id
  int64_t optimizer_step_ = 0;
};

}  // namespace qn
