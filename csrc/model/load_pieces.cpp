#include "model/load_pieces.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "format/ggml_blocks.h"
#include "ops/quantize.h"

namespace qn {

namespace {

float value_at(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// As f32_to_bf16 without its case for NaN, so that the loop over it vectorises.
uint16_t finite_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// The bits of |x| order like the magnitudes, with infinities and NaNs on top: one integer maximum finds them all. Those
// of 16 bits are the upper half of the result.
uint32_t largest_bits(const void* values, DType dtype, int64_t count) {
  if (dtype == DType::kF32) {
    const auto* bits = static_cast<const uint32_t*>(values);
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, bits[i] & 0x7fffffffu);
    return largest;
  }
  // Signed, because every x86-64 has a maximum of such words.
  const auto* bits = static_cast<const int16_t*>(values);
  int16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<int16_t>(bits[i] & 0x7fff));
  return static_cast<uint32_t>(largest) << 16;
}

bool all_finite(const void* values, DType dtype, int64_t count) {
  return largest_bits(values, dtype, count) < (dtype == DType::kF16 ? 0x7c000000u : 0x7f800000u);
}

[[noreturn]] void fail_at(Code code, const char* what, double value, const PieceName& name, int64_t i,
                          const char* unit) {
  const int64_t at = name.begin + i;
  fail(code, "%s holds %s %g at row %lld, %s %lld", name.parameter.c_str(), what, value, (long long)(at / name.width),
       unit, (long long)(at % name.width));
}

}  // namespace

void check_finite(const void* values, DType dtype, int64_t count, const PieceName& name) {
  if (all_finite(values, dtype, count)) return;
  for (int64_t i = 0; i < count; ++i) {
    const float value = value_at(values, dtype, i);
    if (!(value - value == 0)) fail_at(Code::kNonFiniteWeight, "the value", value, name, i, "column");
  }
}

void check_scales(const uint8_t* scales, int64_t count, const PieceName& name) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, scales[i]);
  if (largest < 0x7f) return;  // 0x7f is NaN, everything above has its sign bit set
  for (int64_t i = 0; i < count; ++i) {
    if (scales[i] < 0x7f) continue;
    fail_at(Code::kNonFiniteWeight, "the scale", static_cast<double>(e4m3_to_f32(scales[i])), name, i, "block");
  }
}

void check_absmax(const float* absmax, int64_t count, const std::string& parameter, int64_t begin) {
  if (all_finite(absmax, DType::kF32, count)) return;
  for (int64_t i = 0; i < count; ++i) {
    if (absmax[i] - absmax[i] == 0) continue;
    fail(Code::kNonFiniteWeight, "%s holds the absmax %g of block %lld", parameter.c_str(), double(absmax[i]),
         (long long)(begin + i));
  }
}

void widen(float* out, const void* in, DType dtype, int64_t count, const LinearKernels& kernels) {
  if (dtype == DType::kF32) {
    if (out != in) std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* bits = static_cast<const uint16_t*>(in);
  (dtype == DType::kF16 ? kernels.decode_f16 : kernels.decode_bf16)(out, bits, count);
}

void narrow(void* out, const float* in, Storage form, int64_t count, const PieceName& name,
            const LinearKernels& kernels) {
  if (form == Storage::kF32) {
    if (out != in) std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* bits = static_cast<uint16_t*>(out);
  if (form == Storage::kBF16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = finite_to_bf16(in[i]);
  } else {
    kernels.encode_f16(bits, in, count);
  }
  const DType dtype = form == Storage::kBF16 ? DType::kBF16 : DType::kF16;
  if (all_finite(bits, dtype, count)) return;
  for (int64_t i = 0; i < count; ++i) {
    const float value = value_at(bits, dtype, i);
    if (!(value - value == 0)) {
      fail_at(Code::kNonFiniteWeight, "a value too large for its 16 bits,", static_cast<double>(in[i]), name, i,
              "column");
    }
  }
}

void narrow_q8(uint8_t* blocks, const float* in, int64_t count, const PieceName& name) {
  pack_ggml_q8_0(blocks, in, count);
  for (int64_t i = 0; i < count; i += kGgmlQ8Columns, blocks += kGgmlQ8Bytes) {
    if (blocks[1] != 0x7c) continue;  // the upper byte of an infinity
    for (int64_t j = i; j < i + kGgmlQ8Columns; ++j) {
      if (std::fabs(in[j]) < 127.0f * 65504.0f) continue;
      fail_at(Code::kNonFiniteWeight, "a value too large for Q8_0,", static_cast<double>(in[j]), name, j, "column");
    }
  }
}

void encode_scales(uint8_t* out, const void* in, DType dtype, int64_t count, const PieceName& name) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = value_at(in, dtype, i);
    if (!(value >= 0) || std::bit_cast<uint32_t>(value) >> 31) {
      fail_at(Code::kNonFiniteWeight, "the scale", static_cast<double>(value), name, i, "block");
    }
    out[i] = f32_to_e4m3(value);
    if (e4m3_to_f32(out[i]) != value) {
      fail_at(Code::kInvalidArgument, "a scale that is no E4M3 value,", static_cast<double>(value), name, i, "block");
    }
  }
}

void quantize_piece(uint8_t* codes, uint8_t* scales, const float* x, int64_t count, float global_scale, ScaleRule rule,
                    Isa isa) {
  QuantizeArgs args{};
  args.codes = codes;
  args.scales = scales;
  args.x = x;
  args.N = count / kBlockSize;
  args.K = kBlockSize;
  args.global_scale = global_scale;
  args.rounding = Rounding::kNearestEven;
  args.scale_rule = rule;
  quantize_nvfp4_rows(args, 0, args.N, isa);
}

float largest_magnitude(const void* values, DType dtype, int64_t count) {
  const uint32_t bits = largest_bits(values, dtype, count);
  return dtype == DType::kF16 ? f16_to_f32(static_cast<uint16_t>(bits >> 16)) : std::bit_cast<float>(bits);
}

}  // namespace qn
