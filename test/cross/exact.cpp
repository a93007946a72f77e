// What has to give the same bytes everywhere: the quantisers and the optimiser.
#include <cmath>

#include "check.h"
#include "core/dtype.h"
#include "ops/adamw.h"
#include "ops/gemm.h"
#include "ops/quantize.h"

namespace qn::cross {

namespace {

using Bytes = std::vector<uint8_t>;

void append(Bytes& to, const void* data, int64_t count) {
  const auto* from = static_cast<const uint8_t*>(data);
  to.insert(to.end(), from, from + count);
}

// Codes, scales and what they decode to. Magnitudes cover ten octaves, with zeros and ties.
Bytes quantized(int64_t N, int64_t K, Rounding rounding, ScaleRule rule, const Cpu& cpu) {
  std::vector<float> x = floats(N * K, 61), size = floats(N * K / 16, 62, 5.0f), out(N * K);
  for (int64_t i = 0; i < N * K; ++i) {
    x[i] *= __builtin_exp2f(__builtin_rintf(size[i / 16]));
    if (i % 5 == 0) x[i] = __builtin_rintf(4 * x[i]) * 0.25f;
  }
  Bytes bytes(N * K / 2 + N * K / 16);
  uint8_t *codes = bytes.data(), *scales = codes + N * K / 2;
  const RandomKey random = {.seed = 5, .parameter = 2, .step = 9, .stream = RandomStream::kUser, .first_row = 3};
  quantize_nvfp4_cpu({codes, scales, x.data(), N, K, 0.125f, rounding, rule, random}, cpu);
  dequantize_nvfp4_cpu({out.data(), codes, scales, N, K, 0.125f}, cpu);
  append(bytes, out.data(), N * K * 4);
  const float amax = amax_cpu(x.data(), N, K, cpu);
  append(bytes, &amax, 4);
  return bytes;
}

struct Moment {
  Moment(MomentFormat format, int64_t N, int64_t K)
      : values(moment_value_bytes(format, N * K) / 4 + 1), scales(N * K / 16 + 1), rows(N) {}
  MomentView view() { return {values.data(), scales.data(), rows.data()}; }
  void append_to(Bytes& to) const {
    append(to, values.data(), static_cast<int64_t>(values.size()) * 4);
    append(to, scales.data(), static_cast<int64_t>(scales.size()));
    append(to, rows.data(), static_cast<int64_t>(rows.size()) * 4);
  }
  std::vector<float> values;
  Bytes scales;
  std::vector<float> rows;
};

struct Kind {
  Storage storage;
  WeightMode mode;
  MomentFormat moments;
};

// Weight, moments and the report after three steps.
Bytes trained(const Kind& kind, int64_t N, int64_t K, const Cpu& cpu) {
  const std::vector<float> start = floats(N * K, 71, 2.0f);
  std::vector<float> dense = start;
  Bytes codes(N * K / 2 + 1), scales(N * K / 16 + 1), residual_codes(N * K / 2 + 1), residual_scales(N * K / 16 + 1);
  if (kind.storage == Storage::kNvfp4) {
    quantize_nvfp4_cpu(
        {codes.data(), scales.data(), start.data(), N, K, 1.0f, Rounding::kNearestEven, ScaleRule::kAmax, {}}, cpu);
  }
  std::vector<uint16_t> halves;
  for (const float value : start)
    halves.push_back(kind.storage == Storage::kF16 ? f32_to_f16(value) : f32_to_bf16(value));
  const bool wide = kind.storage == Storage::kNvfp4 ? kind.mode == WeightMode::kFp32 : kind.storage == Storage::kF32;
  void* weight = wide ? static_cast<void*>(dense.data()) : halves.data();
  Moment m(kind.moments, N, K), v(kind.moments, N, K);
  Bytes out;
  for (uint32_t step = 1; step <= 3; ++step) {
    const std::vector<float> g = floats(N * K, 80 + step, 0.1f);
    AdamwArgs args;
    args.row_count = N;
    args.K = K;
    args.g = g.data();
    args.gradient_scale = 0.5f;
    args.storage = kind.storage;
    args.mode = kind.mode;
    args.dense = args.master = weight;
    args.codes = codes.data();
    args.scales = scales.data();
    args.residual_codes = residual_codes.data();
    args.residual_scales = residual_scales.data();
    args.moments = kind.moments;
    args.m = m.view();
    args.v = v.view();
    args.a = 0.4f;
    args.b = 0.3f;
    args.rate = 0.05f;
    args.keep = 0.999f;
    args.seed = 77;
    args.parameter = 4;
    args.step = step;
    std::vector<AdamwRow> rows(N);
    adamw_cpu(rows.data(), args, cpu);
    for (const AdamwRow& row : rows) {
      append(out, &row.update_squares, 8);
      append(out, &row.changed_codes, 4);
      append(out, &row.saturated, 4);
    }
  }
  for (const Bytes* part : {&codes, &scales, &residual_codes, &residual_scales})
    append(out, part->data(), part->size());
  append(out, dense.data(), N * K * 4);
  append(out, halves.data(), N * K * 2);
  m.append_to(out);
  v.append_to(out);
  return out;
}

Bytes stored(MomentFormat format, int64_t N, int64_t K, const Cpu& cpu) {
  const std::vector<float> x = floats(N * K, 91);
  Moment m(format, N, K);
  const StoreRowsArgs args = {0, N, K, format, m.view(), 3, 1, 2};
  store_rows_cpu(args, x.data(), cpu);
  std::vector<float> back(N * K);
  load_rows_cpu(back.data(), args, cpu);
  std::vector<double> squares(N);
  row_squares_cpu(squares.data(), x.data(), N, K, cpu);
  Bytes out;
  m.append_to(out);
  append(out, back.data(), N * K * 4);
  append(out, squares.data(), N * 8);
  return out;
}

template <typename Make>
void check_everywhere(Digest& digest, const Levels& levels, const std::string& name, const Make& make) {
  const Bytes truth = make(levels.portable);
  digest.add(truth.data(), static_cast<int64_t>(truth.size()));
  check_equal(make(levels.one), truth, name);
  check_equal(make(levels.three), truth, name + " on three threads");
}

// Every finite half, the tie above it and the floats beside the tie; what overflows; and counts that leave lanes over.
void check_halves(const Levels& levels) {
  std::vector<float> values = {1e-30f, 65519.99f, 65520.0f, 1e30f};
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float below = f16_to_f32(static_cast<uint16_t>(bits)), above = f16_to_f32(static_cast<uint16_t>(bits + 1));
    const float tie = below + 0.5f * (above - below);
    for (const float value : {below, std::nextafter(tie, below), tie, std::nextafter(tie, above)}) {
      values.insert(values.end(), {value, -value});
    }
  }
  const auto size = static_cast<int64_t>(values.size());
  for (const int64_t count : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{9}, int64_t{23}, size}) {
    std::vector<uint16_t> truth(count + 1, 0xabcd), made = truth;
    linear_kernels(levels.portable.isa).encode_f16(truth.data(), values.data() + size - count, count);
    linear_kernels(levels.one.isa).encode_f16(made.data(), values.data() + size - count, count);
    check_equal(made, truth, "halves, " + std::to_string(count));
  }
}

uint64_t check_quantisers(const Levels& levels) {
  Digest digest;
  for (const Rounding rounding : {Rounding::kNearestEven, Rounding::kStochastic}) {
    for (const ScaleRule rule : {ScaleRule::kAmax, ScaleRule::kAmaxUp, ScaleRule::kFourOverSix}) {
      for (const int64_t K : {16, 48, 400}) {
        const std::string name = "quantised, rounding " + std::to_string(static_cast<int>(rounding)) + ", rule " +
                                 std::to_string(static_cast<int>(rule)) + ", K=" + std::to_string(K);
        check_everywhere(digest, levels, name, [&](const Cpu& cpu) { return quantized(171, K, rounding, rule, cpu); });
      }
    }
  }
  return digest.value;
}

uint64_t check_optimiser(const Levels& levels) {
  Digest digest;
  const auto run = [&](const Kind& kind, int64_t K) {
    const std::string name = "adamw, storage " + std::to_string(static_cast<int>(kind.storage)) + ", mode " +
                             std::to_string(static_cast<int>(kind.mode)) + ", moments " +
                             std::to_string(static_cast<int>(kind.moments)) + ", K=" + std::to_string(K);
    check_everywhere(digest, levels, name, [&](const Cpu& cpu) { return trained(kind, 70, K, cpu); });
  };
  using M = MomentFormat;
  for (const M moments : {M::kNvfp4, M::kInt8, M::kBf16, M::kFp32}) {
    for (const int64_t K : {16, 272}) {
      for (const WeightMode mode :
           {WeightMode::kNvfp4, WeightMode::kNvfp4Residual, WeightMode::kBf16, WeightMode::kFp32}) {
        run({Storage::kNvfp4, mode, moments}, K);
      }
      for (const Storage storage : {Storage::kF32, Storage::kF16, Storage::kBF16}) {
        const int64_t columns = moments == M::kBf16 || moments == M::kFp32 ? K + 3 : K;
        run({storage, WeightMode::kNvfp4, moments}, columns);
      }
      check_everywhere(digest, levels, "stored rows, moments " + std::to_string(static_cast<int>(moments)),
                       [&](const Cpu& cpu) { return stored(moments, 70, K, cpu); });
    }
  }
  Bytes scales(127);
  for (int i = 0; i < 127; ++i) scales[i] = static_cast<uint8_t>(i);
  adamw_halve_scales(scales.data(), 127);
  digest.add(scales.data(), 127);
  return digest.value;
}

}  // namespace

void check_exact(const Levels& levels) {
  check_halves(levels);
  check_digest(check_quantisers(levels), 0xc97304c7b1763629, "the quantisers' bytes");
  check_digest(check_optimiser(levels), 0xed33c7ce057db0a9, "the optimiser's bytes");
}

}  // namespace qn::cross
