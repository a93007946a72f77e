// Moments of a PackedAdamW as numbers, for state files of other libraries.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "core/host_bytes.h"
#include "core/status.h"
#include "format/nvfp4.h"
#include "train/packed_adamw.h"

namespace qn {

namespace {

struct HostMoment {
  HostMoment(Device& device, const Buffer& values, const Buffer& scales, const Buffer& rows)
      : values(device, values), scales(device, scales), rows(device, rows) {}
  MomentView view() const { return {values.as<uint8_t>(), scales.as<uint8_t>(), rows.as<float>()}; }
  void write_back() {
    for (HostBytes* bytes : {&values, &scales, &rows}) bytes->write_back();
  }
  HostBytes values, scales, rows;
};

float code_value(const MomentView& view, MomentFormat format, int64_t i) {
  if (format == MomentFormat::kInt8) return static_cast<const int8_t*>(view.values)[i];
  const uint32_t byte = static_cast<const uint8_t*>(view.values)[i / 2];
  return e2m1_to_f32(i % 2 ? byte >> 4 : byte & 15u);
}

// One row of a packed pair: see MomentView.
void decode_row(float* m, float* v, const MomentView& first, const MomentView& second, MomentFormat format, int64_t row,
                int64_t K) {
  const int64_t begin = row * K;
  if (second.scales[begin / 16] == 0) {  // no gradient yet
    std::fill_n(m, K, 0.0f);
    std::fill_n(v, K, 0.0f);
    return;
  }
  const double centre = std::nearbyint(static_cast<double>(second.rows[row]) * 4) / 4;
  for (int64_t k = 0; k < K; ++k) {
    const int64_t i = begin + k;
    const double octaves = centre + double(code_value(second, format, i)) * e4m3_to_f32(second.scales[i / 16]);
    const double units = double(code_value(first, format, i)) * e4m3_to_f32(first.scales[i / 16]) * first.rows[row];
    v[k] = static_cast<float>(std::exp2(octaves));
    m[k] = static_cast<float>(units * std::exp2(octaves / 2));
  }
}

// Rows [0, count) of empty packed moments from g: a step whose rates are a and b, on weights that do not matter.
void step_moments(const MomentView& first, const MomentView& second, MomentFormat format, const float* g, float a,
                  float b, int64_t count, int64_t K, std::vector<float>& weights, const Cpu& cpu) {
  std::vector<AdamwRow> results(static_cast<size_t>(count));
  AdamwArgs args;
  args.row_count = count;
  args.K = K;
  args.g = g;
  args.storage = Storage::kF32;
  args.dense = weights.data();
  args.moments = format;
  args.m = first;
  args.v = second;
  args.a = a;
  args.b = b;
  adamw_cpu(results.data(), args, cpu);
}

MomentView from_row(const MomentView& view, MomentFormat format, int64_t row, int64_t K) {
  return {static_cast<char*>(view.values) + moment_value_bytes(format, row * K), view.scales + row * (K / 16),
          view.rows + row};
}

}  // namespace

PackedAdamW::State& PackedAdamW::active_state(const Parameter& parameter) {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  make_missing_states();
  State& state = states_[parameter.id];
  if (!state.active) {
    fail(Code::kInvalidArgument, "%s has no moments, as it is not trained", parameter.name.c_str());
  }
  return state;
}

int64_t PackedAdamW::read_moments(const Parameter& parameter, float* m, float* v, const Cpu& cpu) {
  const State& state = active_state(parameter);
  Device& device = model_.device();
  const HostMoment first(device, state.m.values, state.m.scales, state.m.rows);
  const HostMoment second(device, state.v.values, state.v.scales, state.v.rows);
  const int64_t K = parameter.cols;
  if (moment_has_scales(state.format)) {
    cpu.pool.run(parameter.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        decode_row(m + row * K, v + row * K, first.view(), second.view(), state.format, row, K);
      }
    });
    return state.updates;
  }
  StoreRowsArgs args;
  args.row_count = parameter.rows;
  args.K = K;
  args.format = state.format;
  args.view = first.view();
  load_rows_cpu(m, args, cpu);
  args.view = second.view();
  load_rows_cpu(v, args, cpu);
  return state.updates;
}

void PackedAdamW::write_moments(const Parameter& parameter, const float* m, const float* v, int64_t updates,
                                const Cpu& cpu) {
  State& state = active_state(parameter);
  Device& device = model_.device();
  HostMoment first(device, state.m.values, state.m.scales, state.m.rows);
  HostMoment second(device, state.v.values, state.v.scales, state.v.rows);
  const int64_t K = parameter.cols, count = parameter.count();
  if (state.format == MomentFormat::kFp32) {
    std::copy_n(m, count, first.values.as<float>());
    std::copy_n(v, count, second.values.as<float>());
  } else if (state.format == MomentFormat::kBf16) {
    std::transform(m, m + count, first.values.as<uint16_t>(), f32_to_bf16);
    std::transform(v, v + count, second.values.as<uint16_t>(), f32_to_bf16);
  } else {
    // The rounding of a step itself: from nothing, g = √v with a = b = 1 stores v; then g = m with a = 1, b = 0 stores
    // m in units of the v that was stored, and leaves that as it is.
    const int64_t most = std::clamp<int64_t>((4 << 20) / K, 1, parameter.rows);
    std::vector<float> roots(static_cast<size_t>(most * K)), weights(roots.size());
    for (HostMoment* moment : {&first, &second}) std::fill_n(moment->scales.as<uint8_t>(), count / 16, uint8_t{0});
    std::fill_n(second.rows.as<float>(), parameter.rows, 0.0f);
    for (int64_t row = 0; row < parameter.rows; row += most) {
      const int64_t rows = std::min(most, parameter.rows - row), begin = row * K;
      for (int64_t i = 0; i < rows * K; ++i) roots[static_cast<size_t>(i)] = std::sqrt(v[begin + i]);
      const MomentView m_rows = from_row(first.view(), state.format, row, K);
      const MomentView v_rows = from_row(second.view(), state.format, row, K);
      step_moments(m_rows, v_rows, state.format, roots.data(), 1, 1, rows, K, weights, cpu);
      step_moments(m_rows, v_rows, state.format, m + begin, 1, 0, rows, K, weights, cpu);
    }
  }
  first.write_back();
  second.write_back();
  state.updates = updates;
  step_ = std::max(step_, updates);
  last_grad_norm_ = -1;
}

}  // namespace qn
