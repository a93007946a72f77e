// Normal(0, stddev) weights by inversion: z = Φ⁻¹((word + ½) / 2³²), one Philox word an element, addressed by parameter
// and element alone.
//
// The bytes must be the same on every machine, and libm's log differs in its last bit from one to the next. So Φ⁻¹ is
// Wichura's rational approximation (Algorithm AS 241, PPND7, Applied Statistics 37, 1988; relative error 1e-7) in
// doubles, with a logarithm of our own: only +, −, ·, / and sqrt, which IEEE 754 defines to the last bit, and none of
// it contracted.
#include <cmath>

#include "core/dtype.h"
#include "core/status.h"
#include "format/nvfp4.h"
#include "model/model.h"

namespace qn {

namespace {

// Beyond every draw: the outermost word gives |z| = 6.34.
constexpr float kLargestNormal = 6.4f;

// ln(x) for positive normal x, to about 1e-16: x = 2^e · m with m in [√½, √2), ln m = 2 artanh((m − 1) / (m + 1)).
double natural_log(double x) {
  const auto bits = __builtin_bit_cast(uint64_t, x);
  // 0x3fe6a09e667f3bcd is √½: taking its bits off first puts the break between exponents there.
  const auto shifted = static_cast<int64_t>(bits - 0x3fe6a09e667f3bcdull);
  const int64_t exponent = shifted >> 52;
  const double m = __builtin_bit_cast(double, bits - (static_cast<uint64_t>(exponent) << 52));
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
  double series = 0;
  for (int n = 21; n >= 1; n -= 2) series = series * s2 + 1.0 / n;
  return static_cast<double>(exponent) * 0.693147180559945309417 + 2.0 * s * series;
}

double normal_tail(double p) {
  double r = std::sqrt(-natural_log(p));
  if (r <= 5.0) {
    r -= 1.6;
    return (((1.7023821103E-1 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
           ((1.2021132975E-1 * r + 7.3700164250E-1) * r + 1.0);
  }
  r -= 5.0;
  return (((1.7337203997E-2 * r + 4.2868294337E-1) * r + 3.0812263860) * r + 6.6579051150) /
         ((1.2258202635E-2 * r + 2.4197894225E-1) * r + 1.0);
}

double normal_from_word(uint32_t word) {
  const double p = (static_cast<double>(word) + 0.5) * 0x1p-32, q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * (((5.9109374720E+1 * r + 1.5929113202E+2) * r + 5.0434271938E+1) * r + 3.3871327179) /
           (((6.7187563600E+1 * r + 7.8757757664E+1) * r + 1.7895169469E+1) * r + 1.0);
  }
  return q < 0 ? -normal_tail(p) : normal_tail(1.0 - p);
}

struct Draws {
  uint64_t seed;
  uint32_t parameter;
  double stddev;

  // Elements 4·quad … 4·quad + 3.
  void quad(int64_t quad, float* out) const {
    const PhiloxWords words = random_words(seed, quad, parameter, 0, RandomStream::kInitialize);
    for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(stddev * normal_from_word(words.w[i]));
  }
};

void store(const Parameter& parameter, int64_t at, float value) {
  switch (parameter.storage) {
    case Storage::kF32:
      parameter.dense.as<float>()[at] = value;
      break;
    case Storage::kF16:
      parameter.dense.as<uint16_t>()[at] = f32_to_f16(value);
      break;
    case Storage::kBF16:
      parameter.dense.as<uint16_t>()[at] = f32_to_bf16(value);
      break;
    case Storage::kNvfp4:
      fail(Code::kInternal, "an NVFP4 tensor has no dense elements");
  }
}

// 4096 quads a piece, whatever the shape.
constexpr int64_t kPiece = 16384;

void fill_dense(Parameter& parameter, const Draws& draws, const Cpu& cpu) {
  cpu.pool.run(parameter.count(), kPiece, [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    float values[4];
    for (int64_t at = begin; at < end; at += 4) {
      draws.quad(at / 4, values);
      for (int64_t i = at; i < end && i < at + 4; ++i) store(parameter, i, values[i - at]);
    }
  });
}

void fill_nvfp4(Parameter& parameter, const Draws& draws, const Cpu& cpu) {
  cpu.pool.run(parameter.count(), kPiece, [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    float values[kBlockSize];
    for (int64_t at = begin; at < end; at += kBlockSize) {
      for (int i = 0; i < kBlockSize; i += 4) draws.quad((at + i) / 4, values + i);
      quantize_nvfp4_block(parameter.codes.as<uint8_t>() + at / 2, parameter.scales.as<uint8_t>() + at / kBlockSize,
                           values, parameter.global_scale, Rounding::kNearestEven, ScaleRule::kAmax, RandomKey{}, at);
    }
  });
}

void fill_ones(Parameter& parameter) {
  for (int64_t i = 0; i < parameter.count(); ++i) parameter.dense.as<float>()[i] = 1.0f;
}

}  // namespace

void initialize_model(Model& model, const InitializeOptions& options, const Cpu& cpu) {
  if (!(options.stddev > 0) || !std::isfinite(options.stddev)) {
    fail(Code::kInvalidArgument, "the standard deviation of the weights is %g", static_cast<double>(options.stddev));
  }
  for (Parameter& parameter : model.parameters()) {
    cpu.check_cancelled();
    const bool packs = !parameter.is_vector && parameter.cols % kBlockSize == 0;
    const Storage matrix = options.storage == Storage::kNvfp4 && !packs ? Storage::kF32 : options.storage;
    parameter.allocate(model.device().ledger(), parameter.is_vector ? Storage::kF32 : matrix);
    if (parameter.is_vector) {
      fill_ones(parameter);
      continue;
    }
    const Draws draws{options.seed, parameter.id, static_cast<double>(options.stddev)};
    if (parameter.storage != Storage::kNvfp4) {
      fill_dense(parameter, draws, cpu);
      continue;
    }
    // From the largest draw there can be, so that one pass does: nothing saturates, and every scale is far from the
    // subnormal ones.
    parameter.two_level = options.two_level;
    parameter.global_scale = options.two_level ? two_level_global_scale(options.stddev * kLargestNormal) : 1.0f;
    fill_nvfp4(parameter, draws, cpu);
  }
  model.mark_changed();
}

}  // namespace qn
