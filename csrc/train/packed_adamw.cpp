// The steps of a PackedAdamW; packed_adamw_state.cpp has what it keeps between them.
#include "train/packed_adamw.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"

namespace qn {

namespace {

// Rows that exist at once: equal pieces, so that a few last rows are not a launch of their own.
int64_t equal_chunk(const Parameter& parameter, const AdamwOptions& options) {
  const int64_t pieces = (parameter.rows + options.step_chunk_rows - 1) / options.step_chunk_rows;
  return (parameter.rows + pieces - 1) / pieces;
}

// Rows of results that wait to be summed: with less work, a sum of few rows takes as long as one of many.
constexpr int64_t kPendingRows = 1 << 16;

}  // namespace

int64_t PackedAdamW::chunk_rows(const Parameter& parameter) const { return equal_chunk(parameter, options_); }

PackedAdamW::Scratch PackedAdamW::plan_scratch(const std::deque<Parameter>& parameters, const AdamwOptions& options,
                                               bool bf16_rows) {
  int64_t rows = 1, all_rows = 1;
  Scratch scratch;
  for (const Parameter& parameter : parameters) {
    if (!parameter.trainable) continue;
    rows = std::max(rows, parameter.rows);
    all_rows += parameter.rows;
    const bool embedding = parameter.id == 0;
    const int64_t element = bf16_rows && !embedding ? 2 : 4;
    if (parameter.is_vector) continue;
    scratch.gradient = std::max(scratch.gradient, equal_chunk(parameter, options) * parameter.cols * element);
  }
  rows = std::max(rows, std::min(all_rows, kPendingRows));
  scratch.results = rows * static_cast<int64_t>(sizeof(AdamwRow));
  scratch.squares = rows * static_cast<int64_t>(sizeof(double));
  scratch.totals = static_cast<int64_t>(parameters.size() * sizeof(UpdateTotals));
  return scratch;
}

int64_t PackedAdamW::scratch_bytes(const std::deque<Parameter>& parameters, const AdamwOptions& options,
                                   bool bf16_rows) {
  return plan_scratch(parameters, options, bf16_rows).bytes();
}

int64_t PackedAdamW::missing_scratch_bytes(bool bf16_rows) const {
  const Scratch scratch = plan_scratch(model_.parameters(), options_, bf16_rows);
  const auto missing = [](const Buffer& buffer, int64_t bytes) { return buffer.bytes() < bytes ? bytes : 0; };
  return missing(gradient_rows_, scratch.gradient) + missing(row_results_, scratch.results) +
         missing(row_squares_, scratch.squares) + missing(totals_, scratch.totals);
}

// Everything that can fail for want of memory happens here.
void PackedAdamW::prepare(bool bf16_rows) {
  make_missing_states();
  const Scratch scratch = plan_scratch(model_.parameters(), options_, bf16_rows);
  const auto grow = [&](Buffer& buffer, int64_t bytes) {
    if (buffer.bytes() >= bytes) return;
    buffer = Buffer();
    buffer = Buffer(model_.device().ledger(), MemoryKind::kScratch, bytes);
  };
  grow(row_results_, scratch.results);
  grow(row_squares_, scratch.squares);
  grow(gradient_rows_, scratch.gradient);
  grow(totals_, scratch.totals);
  grow(stop_, sizeof(uint32_t));
  model_.device().zero(totals_.data(), totals_.bytes());
  model_.device().zero(stop_.data(), stop_.bytes());
}

void PackedAdamW::begin(double lr, double clip_scale, bool bf16_rows) {
  if (!std::isfinite(lr) || lr < 0) fail(Code::kInvalidArgument, "Expected 0 or more for lr but received %g", lr);
  prepare(bf16_rows);
  in_step_ = true;
  touched_ = false;
  pending_.clear();
  lr_ = lr;
  stats_ = {};
  stats_.step = ++step_;
  stats_.clip_scale = clip_scale;
  code_elements_ = 0;
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

// Where results and squares of a parameter's rows begin.
int64_t PackedAdamW::pending_begin(const Parameter& parameter, Engine& engine) {
  const int64_t begin = pending_.empty() ? 0 : pending_.back().begin + pending_.back().count;
  const int64_t rows = row_squares_.bytes() / static_cast<int64_t>(sizeof(double));
  if (begin + parameter.rows <= rows) return begin;
  sum_pending(engine);
  return 0;
}

void PackedAdamW::sum_pending(Engine& engine) {
  engine.sum_rows(totals_.as<UpdateTotals>(), row_results_.as<AdamwRow>(), row_squares_.as<double>(), pending_);
  pending_.clear();
}

// Σ g² of a gradient that nothing is done with.
void PackedAdamW::measure(const Parameter& parameter, const Rows& gradient, Engine& engine) {
  const State& state = states_[parameter.id];
  if (!parameter.trainable || !state.active) return;
  const int64_t chunk = chunk_rows(parameter), pending = pending_begin(parameter, engine);
  double* squares = row_squares_.as<double>() + pending;
  for (int64_t begin = 0; begin < parameter.rows; begin += chunk) {
    const int64_t count = std::min(chunk, parameter.rows - begin);
    gradient(begin, count, {squares + begin, &parameter});
  }
  pending_.push_back({.parameter = parameter.id, .measured = true, .begin = pending, .count = parameter.rows});
}

// Counts a step of the parameter, whose gradient has arrived.
AdamwArgs PackedAdamW::begin_update(const Parameter& parameter) {
  State& state = states_[parameter.id];
  if (state.updated_step == step_) {
    fail(Code::kInvalidArgument, "%s received a second gradient within one step", parameter.name.c_str());
  }
  if (state.master && state.overwrites != parameter.overwrites) initialize_master(parameter, state);
  state.updated_step = step_;
  touched_ = true;
  stats_.elements += parameter.count();
  if (parameter.storage == Storage::kNvfp4) code_elements_ += parameter.count();
  return step_args(parameter, state);
}

// `checked`: the gradient is known to be finite, and its norm to be known already.
void PackedAdamW::update(Parameter& parameter, const Rows& gradient, bool checked, Engine& engine) {
  State& state = states_[parameter.id];
  if (!parameter.trainable || !state.active) return;
  const int64_t chunk = chunk_rows(parameter), pending = pending_begin(parameter, engine);
  AdamwRow* results = row_results_.as<AdamwRow>() + pending;
  double* squares = row_squares_.as<double>() + pending;
  AdamwArgs args;
  for (int64_t begin = 0; begin < parameter.rows; begin += chunk) {
    const int64_t count = std::min(chunk, parameter.rows - begin);
    const RowSquares wanted{squares + begin, &parameter, stop_.as<uint32_t>()};
    const GradientRows g = gradient(begin, count, checked ? RowSquares{} : wanted);
    if (begin == 0) args = begin_update(parameter);
    args.g = g.bf16 ? nullptr : static_cast<const float*>(g.data);
    args.g_bf16 = g.bf16 ? static_cast<const uint16_t*>(g.data) : nullptr;
    args.stop = checked ? nullptr : stop_.as<uint32_t>();
    args.row_begin = begin;
    args.row_count = count;
    engine.adamw(results + begin, args);
  }
  pending_.push_back({parameter.id, true, !checked, pending, parameter.rows});
  if (parameter.storage == Storage::kNvfp4) parameter.global_scale = static_cast<float>(state.global_scale);
}

// Those whose gradient is not finite are left, and found in settle().
void PackedAdamW::update_vectors(const std::vector<GradientSink::Vector>& vectors, Engine& engine) {
  std::vector<AdamwArgs> updates;
  for (const auto& [parameter, dw] : vectors) {
    if (!parameter->trainable || !states_[parameter->id].active) continue;
    AdamwArgs& args = updates.emplace_back(begin_update(*parameter));
    args.g = dw;
    args.row_count = 1;
    args.stop = stop_.as<uint32_t>();
  }
  engine.adamw_vectors(totals_.as<UpdateTotals>(), updates);
}

// Reads what the updates so far did, and widens the ranges that they asked for: no weight is used before the next step.
// Error(kNonFiniteGradient) when the device stopped the step.
void PackedAdamW::settle(Engine& engine) {
  sum_pending(engine);
  std::vector<UpdateTotals> totals(states_.size());
  uint32_t stop = 0;
  engine.download(totals.data(), totals_.as<UpdateTotals>(), static_cast<int64_t>(totals.size()));
  engine.download(&stop, stop_.as<uint32_t>(), 1);
  double gradient_squares = 0, update_squares = 0;
  int64_t changed_codes = 0;
  for (Parameter& parameter : model_.parameters()) {
    const UpdateTotals& t = totals[parameter.id];
    if (stop == 0 && !std::isfinite(t.gradient_squares)) stop = parameter.id + 1;
    gradient_squares += t.gradient_squares;
    update_squares += t.update_squares;
    changed_codes += t.changed_codes;
    const bool widens = t.saturated > 0 && parameter.storage == Storage::kNvfp4 && parameter.two_level;
    if (widens) widen_range(parameter, states_[parameter.id]);
  }
  if (stop > 0) {
    const std::string& name = model_.parameters()[stop - 1].name;
    fail_at(name, Code::kNonFiniteGradient, "the gradient of %s is not finite", name.c_str());
  }
  if (gradient_squares > 0) stats_.grad_norm = std::sqrt(gradient_squares);
  stats_.update_rms = stats_.elements ? std::sqrt(update_squares / static_cast<double>(stats_.elements)) : 0;
  stats_.flipped = code_elements_ ? static_cast<double>(changed_codes) / static_cast<double>(code_elements_) : 0;
}

void PackedAdamW::leave_step() {
  in_step_ = false;
  if (touched_) model_.mark_changed();
}

StepStats PackedAdamW::end(Engine& engine) {
  leave_step();
  settle(engine);
  last_grad_norm_ = stats_.grad_norm;
  return stats_;
}

namespace {

// As torch.nn.utils.clip_grad_norm_.
double clip_scale_of(double norm, double max_norm) {
  return max_norm > 0 && norm > max_norm ? max_norm / (norm + 1e-6) : 1;
}

}  // namespace

StepStats PackedAdamW::step(const GradientStore& gradients, const StepArgs& args, const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  Device& device = model_.device();
  const double norm = in_step(step_ + 1, [&] { return gradients.norm(*make_engine(device, cpu)); });
  cpu.check_cancelled();
  if (args.skip_above_norm > 0 && norm > args.skip_above_norm) {
    StepStats skipped = skipped_step();
    skipped.grad_norm = norm;
    return skipped;
  }
  begin(args.lr, clip_scale_of(norm, args.max_grad_norm), false);
  const auto engine = make_engine(device, Cpu{cpu.pool, cpu.isa});  // from here on, not to be cancelled
  stats_.grad_norm = norm;
  for (Parameter& parameter : model_.parameters()) {
    if (!gradients.has(parameter)) continue;
    const Rows rows = [&](int64_t row, int64_t count, const RowSquares&) {
      const float* g = gradients.rows(parameter, row, count, gradient_rows_.as<float>(), *engine);
      return GradientRows{const_cast<float*>(g), false};
    };
    update(parameter, rows, true, *engine);
  }
  return end(*engine);
}

StepStats PackedAdamW::skipped_step() const {
  StepStats stats;
  stats.step = step_;
  stats.skipped = true;
  return stats;
}

std::unique_ptr<PackedAdamW::FusedStep> PackedAdamW::begin_fused_step(double lr, double max_grad_norm, const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is already in progress");
  cpu.check_cancelled();
  Device& device = model_.device();
  begin(lr, last_grad_norm_ < 0 ? 1 : clip_scale_of(last_grad_norm_, max_grad_norm), device.cuda() != nullptr);
  return std::unique_ptr<FusedStep>(new FusedStep(*this, make_engine(device, cpu)));
}

PackedAdamW::FusedStep::~FusedStep() {
  if (finished_) return;
  optimizer_.leave_step();
  try {
    optimizer_.settle(*engine_);
  } catch (const Error&) {  // the error that brought us here is the one to report
  }
}

std::unique_ptr<PackedAdamW::NormPass> PackedAdamW::begin_norm_pass(const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  Device& device = model_.device();
  prepare(device.cuda() != nullptr);
  pending_.clear();
  return std::unique_ptr<NormPass>(new NormPass(*this, make_engine(device, cpu)));
}

// `produce` must outlive the result.
PackedAdamW::Rows PackedAdamW::produced_rows(const Parameter& parameter, const GradientSink::Produce& produce) {
  const bool bf16 = model_.device().cuda() && &parameter != &model_.embedding();
  GradientRows g{gradient_rows_.data(), bf16};
  return [g, &produce](int64_t row, int64_t count, const RowSquares& squares) mutable {
    g.squares = squares;
    produce(row, count, g, false);
    return g;
  };
}

void PackedAdamW::NormPass::matrix(Parameter& parameter, const Produce& produce) {
  optimizer_.measure(parameter, optimizer_.produced_rows(parameter, produce), *engine_);
}

void PackedAdamW::NormPass::vectors(const std::vector<Vector>& vectors) {
  for (const auto& [parameter, dw] : vectors) {
    const Rows row = [this, parameter = parameter, dw = dw](int64_t, int64_t, const RowSquares& squares) {
      const GradientRows g{const_cast<float*>(dw), false, squares};
      engine_->row_squares(g, 1, parameter->cols);
      return g;
    };
    optimizer_.measure(*parameter, row, *engine_);
  }
}

void PackedAdamW::NormPass::finish() {
  optimizer_.sum_pending(*engine_);
  optimizer_.last_grad_norm_ = gradient_norm(optimizer_.model_, optimizer_.totals_, *engine_);
}

void PackedAdamW::FusedStep::matrix(Parameter& parameter, const Produce& produce) {
  optimizer_.update(parameter, optimizer_.produced_rows(parameter, produce), false, *engine_);
}

void PackedAdamW::FusedStep::vectors(const std::vector<Vector>& vectors) {
  optimizer_.update_vectors(vectors, *engine_);
}

StepStats PackedAdamW::FusedStep::finish() {
  finished_ = true;
  return optimizer_.end(*engine_);
}

}  // namespace qn
