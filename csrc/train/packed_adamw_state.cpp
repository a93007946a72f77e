// What a PackedAdamW keeps between steps: moments, masters and residuals of every trainable parameter.
#include "core/dtype.h"
#include "core/host_bytes.h"
#include "core/status.h"
#include "format/nvfp4.h"
#include "train/packed_adamw.h"

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
  Device& device = model_.device();
  const HostBytes codes(device, parameter.codes), scales(device, parameter.scales);
  HostBytes master(device, state.master, HostBytes::Start::kUninitialised);
  device.cpu().pool.run(parameter.rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * parameter.cols; i < end * parameter.cols; ++i) {
      const uint32_t byte = codes.as<uint8_t>()[i / 2];
      const float value = e2m1_to_f32(i % 2 ? byte >> 4 : byte & 15u) * e4m3_to_f32(scales.as<uint8_t>()[i / 16]);
      if (wide) {
        master.as<float>()[i] = value;
      } else {
        master.as<uint16_t>()[i] = f32_to_bf16(value);
      }
    }
  });
  master.write_back();
}

// Weights outgrew 448 · 6 · global: the global scale doubles and everything in its units becomes half.
void PackedAdamW::widen_range(Parameter& parameter, State& state) {
  Device& device = model_.device();
  state.global_scale *= 2;
  parameter.global_scale = static_cast<float>(state.global_scale);
  for (const Buffer* buffer : {&parameter.scales, &parameter.residual_scales}) {
    if (!*buffer) continue;
    HostBytes scales(device, *buffer);
    adamw_halve_scales(scales.as<uint8_t>(), parameter.count() / 16);
    scales.write_back();
  }
  if (!state.master) return;
  HostBytes master(device, state.master);
  for (int64_t i = 0; i < parameter.count(); ++i) {
    if (options_.weights == WeightMode::kFp32) {
      master.as<float>()[i] *= 0.5f;
    } else {
      master.as<uint16_t>()[i] = f32_to_bf16(bf16_to_f32(master.as<uint16_t>()[i]) * 0.5f);
    }
  }
  master.write_back();
}

}  // namespace qn
