// Matrix products (ops/linear.h): gemv, gemm, both backward passes and the decoding of rows.
#include "ops/linear.h"

#include <cmath>

#include "check.h"
#include "core/dtype.h"
#include "ops/gemm.h"

namespace qn::cross {

namespace {

constexpr Storage kStorages[] = {Storage::kF32, Storage::kF16, Storage::kBF16, Storage::kNvfp4,
                                  Storage::kNvfp4, Storage::kBnb4, Storage::kBnb4};
constexpr const char* kNames[] = {"f32", "f16", "bf16", "nvfp4", "nvfp4 with a residual", "nf4", "fp4"};
constexpr int kForms = 7;

// A weight in one of the forms above, values below 7.
struct Weight {
  Weight(int form, int64_t N, int64_t K, uint32_t seed) {
    view = {.storage = kStorages[form],
            .rows = N,
            .cols = K,
            .dense = nullptr,
            .packed = {},
            .residual = {},
            .bnb4 = {}};
    if (form < 3) {
      dense = floats(N * K, seed);
      for (const float value : dense) halves.push_back(form == 1 ? f32_to_f16(value) : f32_to_bf16(value));
      view.dense = form == 0 ? static_cast<const void*>(dense.data()) : halves.data();
      return;
    }
    codes = bytes(N * K / 2, seed);
    if (form >= 5) {
      dense = floats(N * K / kBnb4BlockSize, seed + 1, 6.0f);
      view.bnb4 = {codes.data(), dense.data(), form == 5 ? Codebook::kNf4 : Codebook::kFp4};
      return;
    }
    scales = bytes(N * K / 16, seed + 1, 127);
    residual_codes = bytes(N * K / 2, seed + 2);
    view.packed = {codes.data(), scales.data(), 0x1.3p-9f};  // the largest is 6 · 448 · 0.0023 = 6.2
    if (form == 4) view.residual = {residual_codes.data(), scales.data(), 0x1.3p-12f};
  }
  std::vector<float> dense;
  std::vector<uint16_t> halves;
  std::vector<uint8_t> codes, scales, residual_codes;
  WeightView view;
};

// Rounding of sums of K products below 7.
float tolerance(int64_t K) { return 1e-5f * std::sqrt(static_cast<float>(K)); }

std::vector<float> forward(const Weight& w, const std::vector<float>& x, int64_t T, bool add, const Cpu& cpu) {
  std::vector<float> y = floats(T * w.view.rows, 7);
  linear_cpu(y.data(), x.data(), w.view, T, add, cpu);
  return y;
}

std::vector<float> input_gradient(const Weight& w, const std::vector<float>& dy, int64_t T, bool add, const Cpu& cpu) {
  std::vector<float> dx = floats(T * w.view.cols, 8);
  linear_backward_input_cpu(dx.data(), dy.data(), w.view, T, add, cpu);
  return dx;
}

void check_products(int form, int64_t T, int64_t N, int64_t K, const Levels& levels) {
  const std::string shape =
      std::string(kNames[form]) + " T=" + std::to_string(T) + " N=" + std::to_string(N) + " K=" + std::to_string(K);
  const Weight w(form, N, K, static_cast<uint32_t>(T + N + K));
  const std::vector<float> x = floats(T * K, 1), dy = floats(T * N, 2);
  for (const bool add : {false, true}) {
    const std::string name = shape + (add ? " added" : "");
    const std::vector<float> y = forward(w, x, T, add, levels.one);
    check_close(y, forward(w, x, T, add, levels.portable), tolerance(K), "y " + name);
    check_equal(y, forward(w, x, T, add, levels.three), "y on three threads " + name);
    const std::vector<float> dx = input_gradient(w, dy, T, add, levels.one);
    check_close(dx, input_gradient(w, dy, T, add, levels.portable), tolerance(N), "dx " + name);
    check_equal(dx, input_gradient(w, dy, T, add, levels.three), "dx on three threads " + name);
  }
  std::vector<float> truth(T * N);
  linear_reference_cpu(truth.data(), x.data(), w.view, T, levels.portable);
  check_close(forward(w, x, T, false, levels.one), truth, tolerance(K), "y and f64 " + shape);
  std::vector<float> decoded(N * K), expected(N * K);
  dequantize_rows_cpu(decoded.data(), w.view, 0, N, levels.one);
  dequantize_rows_cpu(expected.data(), w.view, 0, N, levels.portable);
  check_equal(decoded, expected, "decoded rows " + shape);
}

std::vector<float> weight_gradient(int64_t T, int64_t N, int64_t K, int64_t begin, int64_t rows, const Cpu& cpu) {
  const std::vector<float> dy = floats(T * N, 3), x = floats(T * K, 4);
  std::vector<float> dw = floats(rows * K, 5);
  linear_backward_weight_cpu({dw.data(), dy.data(), x.data(), T, N, K, begin, rows, true}, cpu);
  return dw;
}

void check_weight_gradient(int64_t T, int64_t N, int64_t K, const Levels& levels) {
  const std::string shape = "dw T=" + std::to_string(T) + " N=" + std::to_string(N) + " K=" + std::to_string(K);
  const int64_t begin = N / 3, rows = N - begin;
  const std::vector<float> dw = weight_gradient(T, N, K, begin, rows, levels.one);
  check_close(dw, weight_gradient(T, N, K, begin, rows, levels.portable), tolerance(T), shape);
  check_equal(dw, weight_gradient(T, N, K, begin, rows, levels.three), shape + " on three threads");
}

// x with a single 1 reads one column of the weight back, which no rounding may change: 16 codes × 127 scales × all
// places of a code in a row of one to five blocks.
void check_every_code(const Levels& levels) {
  for (int64_t blocks = 1; blocks <= 5; ++blocks) {
    const int64_t N = 127, K = 16 * blocks;
    Weight w(3, N, K, 11);
    for (int64_t i = 0; i < N * K / 2; ++i) {
      const auto first = static_cast<uint32_t>(i % 8 * 2 + i / 8);
      w.codes[i] = static_cast<uint8_t>((first & 15) | ((first + 1) & 15) << 4);
    }
    for (int64_t i = 0; i < N * blocks; ++i) w.scales[i] = static_cast<uint8_t>(i % 127);
    std::vector<float> decoded(N * K);
    dequantize_rows_cpu(decoded.data(), w.view, 0, N, levels.portable);
    bool same = true;
    for (int64_t k = 0; k < K; ++k) {
      std::vector<float> x(K);
      x[k] = 1;
      const std::vector<float> y = forward(w, x, 1, false, levels.one);
      for (int64_t n = 0; n < N; ++n) same = same && y[n] == decoded[n * K + k];
    }
    check(same, "every code and scale in rows of " + std::to_string(blocks) + " blocks");
  }
}

// Every bit pattern of the 16-bit formats, NaNs as NaNs.
void check_every_half(const Levels& levels) {
  for (const Storage storage : {Storage::kF16, Storage::kBF16}) {
    std::vector<uint16_t> halves(65536);
    for (int64_t i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
    const WeightView w = {
        .storage = storage, .rows = 1, .cols = 65536, .dense = halves.data(), .packed = {}, .residual = {}, .bnb4 = {}};
    std::vector<float> decoded(65536), expected(65536);
    dequantize_rows_cpu(decoded.data(), w, 0, 1, levels.one);
    dequantize_rows_cpu(expected.data(), w, 0, 1, levels.portable);
    check_close(decoded, expected, 0, storage == Storage::kF16 ? "every f16" : "every bf16");
  }
}

}  // namespace

void check_linear(const Levels& levels) {
  for (int form = 0; form < kForms; ++form) {
    const std::vector<int64_t> columns =
        form < 3 ? std::vector<int64_t>{1, 3, 16, 19, 37, 261} : form < 5 ? std::vector<int64_t>{16, 32, 48, 64, 112, 272} : std::vector<int64_t>{64, 128, 192, 320};
    for (const int64_t K : columns) {
      for (const int64_t T : {1, 2, 3, 4, 5, 13}) {
        for (const int64_t N : {1, 6, 17, 35}) check_products(form, T, N, K, levels);
      }
    }
  }
  for (const int64_t T : {1, 5, 16, 259}) {
    for (const int64_t N : {1, 7, 20}) {
      for (const int64_t K : {1, 15, 18, 33}) check_weight_gradient(T, N, K, levels);
    }
  }
  check_every_code(levels);
  check_every_half(levels);
}

}  // namespace qn::cross
