#include "model/parameter_values.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "model/host_rows.h"
#include "model/slab.h"
#include "ops/linear.h"
#include "ops/quantize.h"

namespace qn {

namespace {

// Elements that are copied from a GPU at a time.
constexpr int64_t kChunk = 8 << 20;
// Elements that a thread narrows at a time.
constexpr int64_t kPiece = 64 << 10;

void narrow(uint8_t* out, const float* values, int64_t count, Storage form, const Cpu& cpu) {
  auto* words = reinterpret_cast<uint16_t*>(out);
  cpu.pool.run(count, kPiece, [&](int64_t begin, int64_t end, int) {
    if (form == Storage::kF32) {
      std::memcpy(out + begin * 4, values + begin, static_cast<size_t>(end - begin) * 4);
    } else if (form == Storage::kF16) {
      for (int64_t i = begin; i < end; ++i) words[i] = f32_to_f16(values[i]);
    } else {
      for (int64_t i = begin; i < end; ++i) words[i] = f32_to_bf16(values[i]);
    }
  });
}

}  // namespace

void read_values(float* out, Model& model, const Parameter& p, const Cpu& cpu) {
  const int64_t chunk = std::clamp<int64_t>(kChunk / p.cols, 1, p.rows);
  HostRows host(model.device(), p, chunk);
  for (int64_t row = 0; row < p.rows; row += chunk) {
    const int64_t count = std::min(chunk, p.rows - row);
    dequantize_rows_cpu(out + row * p.cols, host.rows(row, count), 0, count, cpu);
  }
}

void write_values(Model& model, Parameter& p, const float* values, const Cpu& cpu) {
  refuse_frozen_form(p);
  const float amax = amax_cpu(values, p.rows, p.cols, cpu);  // refuses NaN and infinity
  if (p.storage == Storage::kNvfp4) {
    p.global_scale = p.two_level ? two_level_global_scale(amax) : 1.0f;
    // Zero and not freed: an optimizer may go on training it.
    for (const Buffer* buffer : {&p.residual_codes, &p.residual_scales}) {
      if (*buffer) model.device().zero(buffer->data(), buffer->bytes());
    }
  }
  Upload upload(model.device());
  const int64_t chunk = std::clamp<int64_t>(longest_slab(p, upload) / p.cols, 1, p.rows);
  for (int64_t row = 0; row < p.rows; row += chunk) {
    const int64_t count = std::min(chunk, p.rows - row), begin = row * p.cols, end = begin + count * p.cols;
    const Slab slab(p, begin, end, false, upload);
    if (p.storage == Storage::kNvfp4) {
      quantize_nvfp4_cpu({slab.codes(begin),
                          slab.scales(begin),
                          values + begin,
                          count,
                          p.cols,
                          p.global_scale,
                          Rounding::kNearestEven,
                          ScaleRule::kAmax,
                          {}},
                         cpu);
    } else {
      narrow(slab.dense(begin), values + begin, end - begin, p.storage, cpu);
    }
    upload.send();
  }
  ++p.overwrites;
  model.mark_changed();
}

}  // namespace qn
