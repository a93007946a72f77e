#include "train/packed_adamw.h"

#include <algorithm>
#include <cmath>

#include "core/dtype.h"
#include "core/status.h"
#include "format/nvfp4.h"

namespace qn {

namespace {

bool packable(const Parameter& parameter) { return !parameter.is_vector && parameter.cols % 16 == 0; }

MomentFormat moment_format(const Parameter& parameter, const AdamwOptions& options) {
  return packable(parameter) ? options.moments : MomentFormat::kFp32;
}

int64_t moment_bytes(const Parameter& parameter, MomentFormat format) {
  const int64_t scales = moment_has_scales(format) ? parameter.count() / 16 + parameter.rows * 4 : 0;
  return moment_value_bytes(format, parameter.count()) + scales;
}

int64_t master_bytes(const Parameter& parameter, WeightMode mode) {
  if (parameter.storage != Storage::kNvfp4) return 0;
  return mode == WeightMode::kFp32 ? parameter.count() * 4 : mode == WeightMode::kBf16 ? parameter.count() * 2 : 0;
}

int64_t residual_bytes(const Parameter& parameter, WeightMode mode) {
  const bool wanted = parameter.storage == Storage::kNvfp4 && mode == WeightMode::kNvfp4Residual;
  return wanted ? parameter.count() / 2 + parameter.count() / 16 : 0;
}

void check_options(const AdamwOptions& o) {
  const bool betas = o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1;
  if (!betas) fail(Code::kInvalidArgument, "Expected betas in [0, 1) but received %g and %g", o.beta1, o.beta2);
  if (!(o.eps > 0)) fail(Code::kInvalidArgument, "Expected a number above 0 for eps but received %g", o.eps);
  if (!(o.weight_decay >= 0)) {
    fail(Code::kInvalidArgument, "Expected 0 or more for weightDecay but received %g", o.weight_decay);
  }
  if (o.step_chunk_rows < 1) {
    fail(Code::kInvalidArgument, "Expected 1 or more rows for stepChunkRows but received %lld",
         (long long)o.step_chunk_rows);
  }
}

}  // namespace

MomentView PackedAdamW::Moment::view() const { return {values.data(), scales.as<uint8_t>(), rows.as<float>()}; }

int64_t PackedAdamW::state_bytes(const Parameter& parameter, const AdamwOptions& options) {
  return 2 * moment_bytes(parameter, moment_format(parameter, options)) + master_bytes(parameter, options.weights) +
         residual_bytes(parameter, options.weights);
}

int64_t PackedAdamW::scratch_bytes(Model& model, const AdamwOptions& options) {
  int64_t gradient = 0, rows = 0;
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.trainable) continue;
    const int64_t count = std::min(options.step_chunk_rows, parameter.rows);
    rows = std::max(rows, count);
    if (!parameter.is_vector) gradient = std::max(gradient, count * parameter.cols * 4);
  }
  return gradient + rows * static_cast<int64_t>(sizeof(AdamwRow) + sizeof(double));
}

PackedAdamW::PackedAdamW(Model& model, const AdamwOptions& options, const Cpu& cpu)
    : model_(model), options_(options), states_(model.parameters().size()) {
  check_options(options);
  cpu.check_cancelled();
  make_missing_states();
}

PackedAdamW::~PackedAdamW() = default;

int64_t PackedAdamW::state_bytes() const {
  int64_t bytes = 0;
  for (const Parameter& parameter : model_.parameters()) {
    if (states_[parameter.id].active) bytes += state_bytes(parameter, options_);
  }
  return bytes;
}

// A parameter can become trainable after the optimizer was made.
void PackedAdamW::make_missing_states() {
  for (Parameter& parameter : model_.parameters()) {
    if (parameter.trainable && !states_[parameter.id].active) make_state(parameter);
  }
}

void PackedAdamW::make_state(Parameter& parameter) {
  const bool packed = parameter.storage == Storage::kNvfp4;
  if (!(packed ? parameter.codes : parameter.dense)) {
    fail(Code::kInvalidArgument, "%s holds no weights yet: load or initialize the model first", parameter.name.c_str());
  }
  const bool residual = packed && options_.weights == WeightMode::kNvfp4Residual;
  if (parameter.residual_codes && !residual) {
    fail(Code::kInvalidArgument, "%s has a residual: Expected weights 'nvfp4+residual' for the optimizer",
         parameter.name.c_str());
  }
  MemoryLedger& ledger = model_.device().ledger();
  State state;
  state.format = moment_format(parameter, options_);
  for (Moment* moment : {&state.m, &state.v}) {
    moment->values = Buffer(ledger, MemoryKind::kMoments, moment_value_bytes(state.format, parameter.count()), true);
    if (!moment_has_scales(state.format)) continue;
    moment->scales = Buffer(ledger, MemoryKind::kMoments, parameter.count() / 16, true);
    moment->rows = Buffer(ledger, MemoryKind::kMoments, parameter.rows * 4, true);
  }
  if (const int64_t bytes = master_bytes(parameter, options_.weights)) {
    state.master = Buffer(ledger, MemoryKind::kMoments, bytes);
    initialize_master(parameter, state);
  }
  if (residual) {
    if (!parameter.residual_codes) parameter.allocate_residual(ledger, true);
    parameter.residual_in_forward = options_.residual_in_forward;
  }
  state.global_scale = static_cast<double>(parameter.global_scale);
  state.active = true;
  states_[parameter.id] = std::move(state);
}

// The decoded weight in units of its global scale: at most seven significant bits, exact in bf16 too.
void PackedAdamW::initialize_master(const Parameter& parameter, State& state) {
  state.overwrites = parameter.overwrites;
  const bool wide = options_.weights == WeightMode::kFp32;
  Cpu cpu = model_.device().cpu();
  cpu.pool.run(parameter.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * parameter.cols; i < end * parameter.cols; ++i) {
      const uint32_t byte = parameter.codes.as<uint8_t>()[i / 2];
      const float value =
          e2m1_to_f32(i % 2 ? byte >> 4 : byte & 15u) * e4m3_to_f32(parameter.scales.as<uint8_t>()[i / 16]);
      if (wide) {
        state.master.as<float>()[i] = value;
      } else {
        state.master.as<uint16_t>()[i] = f32_to_bf16(value);
      }
    }
  });
}

// --- A step ---------------------------------------------------------------------------------------------------------

// Everything that can fail for want of memory happens here.
void PackedAdamW::begin(double lr, double clip_scale, bool needs_gradient_rows, const Cpu& cpu) {
  if (!std::isfinite(lr) || lr < 0) fail(Code::kInvalidArgument, "Expected 0 or more for lr but received %g", lr);
  cpu.check_cancelled();
  make_missing_states();
  MemoryLedger& ledger = model_.device().ledger();
  int64_t rows = 1, gradient = 0;
  for (const Parameter& parameter : model_.parameters()) {
    const int64_t count = std::min(options_.step_chunk_rows, parameter.rows);
    rows = std::max(rows, count);
    if (!parameter.is_vector) gradient = std::max(gradient, count * parameter.cols * 4);
  }
  const auto grow = [&](Buffer& buffer, int64_t bytes) {
    if (buffer.bytes() >= bytes) return;
    buffer = Buffer();
    buffer = Buffer(ledger, MemoryKind::kScratch, bytes);
  };
  grow(row_results_, rows * static_cast<int64_t>(sizeof(AdamwRow)));
  grow(row_squares_, rows * 8);
  if (needs_gradient_rows) grow(gradient_rows_, gradient);
  in_step_ = true;
  touched_ = false;
  lr_ = lr;
  stats_ = {};
  stats_.step = ++step_;
  stats_.clip_scale = clip_scale;
  gradient_squares_ = update_squares_ = 0;
  code_elements_ = changed_codes_ = 0;
}

// Advances what belongs to the whole parameter: its own step count and, with two levels, the decayed global scale. The
// parameter itself gets that scale after its last row: the gradient of a head's later rows is made from its values.
AdamwArgs PackedAdamW::step_args(const Parameter& parameter, State& state) {
  const double t = static_cast<double>(++state.updates);
  const bool packed = parameter.storage == Storage::kNvfp4;
  const bool decays = options_.decay_vectors || !parameter.is_vector;
  const double keep = decays ? 1 - lr_ * options_.weight_decay : 1;
  const bool masters = options_.weights == WeightMode::kBf16 || options_.weights == WeightMode::kFp32;
  const bool by_global = packed && parameter.two_level && !masters;
  if (static_cast<float>(state.global_scale) != parameter.global_scale) {
    state.global_scale = static_cast<double>(parameter.global_scale);
  }
  if (by_global) state.global_scale *= keep;

  AdamwArgs args;
  args.K = parameter.cols;
  args.gradient_scale = static_cast<float>(stats_.clip_scale);
  args.storage = parameter.storage;
  args.mode = options_.weights;
  args.dense = parameter.dense.data();
  args.codes = parameter.codes.as<uint8_t>();
  args.scales = parameter.scales.as<uint8_t>();
  args.residual_codes = parameter.residual_codes.as<uint8_t>();
  args.residual_scales = parameter.residual_scales.as<uint8_t>();
  args.master = state.master.data();
  args.moments = state.format;
  args.m = state.m.view();
  args.v = state.v.view();
  args.a = static_cast<float>((1 - options_.beta1) / (1 - std::pow(options_.beta1, t)));
  args.b = static_cast<float>((1 - options_.beta2) / (1 - std::pow(options_.beta2, t)));
  args.eps = static_cast<float>(options_.eps);
  args.rate = static_cast<float>(packed ? lr_ / static_cast<double>(static_cast<float>(state.global_scale)) : lr_);
  args.keep = by_global ? 1.0f : static_cast<float>(keep);
  args.seed = options_.seed;
  args.parameter = parameter.id;
  args.step = static_cast<uint32_t>(step_);
  return args;
}

// `gradient` gives rows that it has found to be finite, or throws before the first row of the parameter is touched.
void PackedAdamW::update(Parameter& parameter,
                         const std::function<const float*(int64_t row_begin, int64_t row_count)>& gradient,
                         const Cpu& cpu) {
  State& state = states_[parameter.id];
  if (!parameter.trainable || !state.active) return;
  if (state.updated_step == step_) {
    fail(Code::kInvalidArgument, "%s received a second gradient within one step", parameter.name.c_str());
  }
  const int64_t chunk = std::min(options_.step_chunk_rows, parameter.rows);
  AdamwRow* results = row_results_.as<AdamwRow>();
  AdamwArgs args;
  int64_t saturated = 0;
  for (int64_t begin = 0; begin < parameter.rows; begin += chunk) {
    const int64_t count = std::min(chunk, parameter.rows - begin);
    const float* g = gradient(begin, count);
    if (begin == 0) {
      if (state.master && state.overwrites != parameter.overwrites) initialize_master(parameter, state);
      args = step_args(parameter, state);
      state.updated_step = step_;
      touched_ = true;
    }
    args.g = g;
    args.row_begin = begin;
    args.row_count = count;
    adamw_cpu(results, args, cpu);
    for (int64_t row = 0; row < count; ++row) {
      update_squares_ += results[row].update_squares;
      changed_codes_ += results[row].changed_codes;
      saturated += results[row].saturated;
    }
  }
  if (parameter.storage == Storage::kNvfp4) parameter.global_scale = static_cast<float>(state.global_scale);
  stats_.elements += parameter.count();
  if (parameter.storage == Storage::kNvfp4) code_elements_ += parameter.count();
  if (saturated > 0 && parameter.storage == Storage::kNvfp4 && parameter.two_level) widen_range(parameter, state);
}

// Weights outgrew 448 · 6 · global: the global scale doubles and everything in its units becomes half.
void PackedAdamW::widen_range(Parameter& parameter, State& state) {
  state.global_scale *= 2;
  parameter.global_scale = static_cast<float>(state.global_scale);
  adamw_halve_scales(parameter.scales.as<uint8_t>(), parameter.count() / 16);
  if (parameter.residual_scales) adamw_halve_scales(parameter.residual_scales.as<uint8_t>(), parameter.count() / 16);
  if (options_.weights == WeightMode::kFp32) {
    float* master = state.master.as<float>();
    for (int64_t i = 0; i < parameter.count(); ++i) master[i] *= 0.5f;
  } else if (options_.weights == WeightMode::kBf16) {
    uint16_t* master = state.master.as<uint16_t>();
    for (int64_t i = 0; i < parameter.count(); ++i) master[i] = f32_to_bf16(bf16_to_f32(master[i]) * 0.5f);
  }
}

StepStats PackedAdamW::end() {
  in_step_ = false;
  if (touched_) model_.mark_changed();
  stats_.update_rms = stats_.elements ? std::sqrt(update_squares_ / static_cast<double>(stats_.elements)) : 0;
  stats_.flipped = code_elements_ ? static_cast<double>(changed_codes_) / static_cast<double>(code_elements_) : 0;
  last_grad_norm_ = stats_.grad_norm;
  return stats_;
}

namespace {

// As torch.nn.utils.clip_grad_norm_.
double clip_scale_of(double norm, double max_norm) {
  return max_norm > 0 && norm > max_norm ? max_norm / (norm + 1e-6) : 1;
}

}  // namespace

StepStats PackedAdamW::step(const GradientStore& gradients, double lr, double max_grad_norm, const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  const double norm = gradients.norm(cpu);
  begin(lr, clip_scale_of(norm, max_grad_norm), !gradients.is_f32(), cpu);
  stats_.grad_norm = norm;
  const Cpu uninterrupted{cpu.pool, cpu.isa};
  for (Parameter& parameter : model_.parameters()) {
    if (!gradients.has(parameter)) continue;
    update(
        parameter,
        [&](int64_t row, int64_t count) {
          return gradients.rows(parameter, row, count, gradient_rows_.as<float>(), uninterrupted);
        },
        uninterrupted);
  }
  return end();
}

std::unique_ptr<PackedAdamW::FusedStep> PackedAdamW::begin_fused_step(double lr, double max_grad_norm, const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is already in progress");
  begin(lr, last_grad_norm_ < 0 ? 1 : clip_scale_of(last_grad_norm_, max_grad_norm), true, cpu);
  return std::unique_ptr<FusedStep>(new FusedStep(*this, cpu));
}

PackedAdamW::FusedStep::~FusedStep() {
  if (finished_) return;
  optimizer_.in_step_ = false;
  if (optimizer_.touched_) optimizer_.model_.mark_changed();
}

void PackedAdamW::FusedStep::matrix(Parameter& parameter, const Produce& produce) {
  PackedAdamW& o = optimizer_;
  o.update(
      parameter,
      [&](int64_t row, int64_t count) {
        float* g = o.gradient_rows_.as<float>();
        produce(row, count, g, false);
        o.count_gradient(parameter, g, count, cpu_);
        return g;
      },
      cpu_);
}

void PackedAdamW::FusedStep::vector(Parameter& parameter, const float* dw) {
  PackedAdamW& o = optimizer_;
  o.update(
      parameter,
      [&](int64_t, int64_t) {
        o.count_gradient(parameter, dw, 1, cpu_);
        return dw;
      },
      cpu_);
}

// Adds rows to the norm; refuses rows that are not finite.
void PackedAdamW::count_gradient(const Parameter& parameter, const float* g, int64_t row_count, const Cpu& cpu) {
  double* squares = row_squares_.as<double>();
  row_squares_cpu(squares, g, row_count, parameter.cols, cpu);
  for (int64_t row = 0; row < row_count; ++row) gradient_squares_ += squares[row];
  if (!std::isfinite(gradient_squares_)) {
    fail(Code::kNonFiniteGradient, "the gradient of %s is not finite", parameter.name.c_str());
  }
}

StepStats PackedAdamW::FusedStep::finish() {
  finished_ = true;
  optimizer_.stats_.grad_norm = std::sqrt(optimizer_.gradient_squares_);
  return optimizer_.end();
}

}  // namespace qn
