#include "ops/linear.h"

#include <algorithm>

#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/gemm.h"

namespace qn {

namespace {

// Weights of one piece of a matrix-vector product: tens of microseconds, so that pieces even out without costing.
constexpr int64_t kGemvPiece = 1 << 17;

GemmOperand activations(const float* data, int64_t rows, int64_t cols, int64_t stride, bool depth_is_columns) {
  WeightView view;
  view.rows = rows;
  view.cols = cols;
  view.dense = data;
  return {view, stride, depth_is_columns};
}

double packed_value(const Nvfp4View& packed, int64_t at) {
  const float exact = e2m1_to_f32(packed.codes[at / 2] >> (4 * (at % 2))) * e4m3_to_f32(packed.scales[at / kBlockSize]);
  return exact * packed.global_scale;
}

double reference_value(const WeightView& w, int64_t at) {
  switch (w.storage) {
    case Storage::kF32:
      return static_cast<const float*>(w.dense)[at];
    case Storage::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(w.dense)[at]);
    case Storage::kBF16:
      return bf16_to_f32(static_cast<const uint16_t*>(w.dense)[at]);
    case Storage::kNvfp4:
      return packed_value(w.packed, at) + (w.has_residual() ? packed_value(w.residual, at) : 0);
    case Storage::kBnb4:
      return bnb4_to_f32(w.bnb4.codes[at / 2] >> (4 * (at % 2)), w.bnb4.absmax[at / kBnb4BlockSize], w.bnb4.codebook);
  }
  return 0;
}

void run_gemv(GemvArgs args, void (*gemv)(const GemvArgs&, int64_t, int64_t), const Cpu& cpu) {
  const int64_t grain = std::max<int64_t>(1, kGemvPiece / args.K);
  cpu.pool.run(args.N, grain, [&](int64_t begin, int64_t end, int) { gemv(args, begin, end); });
}

// The product by rows of the weight, for few tokens; false when there are too many for it.
bool linear_gemv(float* y, const float* x, const WeightView& w, int64_t T, bool accumulate, const Cpu& cpu) {
  const LinearKernels& kernels = linear_kernels(cpu.isa);
  const int64_t N = w.rows, K = w.cols;
  if (T < 1 || T > kernels.gemv_tokens || K == 0) return false;
  cpu.check_cancelled();
  GemvArgs args{.y = y,
                .x = x,
                .weight = w.dense,
                .scales = nullptr,
                .global_scale = 1,
                .values = nullptr,
                .T = T,
                .N = N,
                .K = K,
                .x_stride = K,
                .accumulate = accumulate};
  switch (w.storage) {
    case Storage::kF32:
      run_gemv(args, kernels.gemv_f32, cpu);
      return true;
    case Storage::kF16:
      run_gemv(args, kernels.gemv_f16, cpu);
      return true;
    case Storage::kBF16:
      run_gemv(args, kernels.gemv_bf16, cpu);
      return true;
    case Storage::kNvfp4:
    case Storage::kBnb4:
      break;
  }
  const int64_t stride = (K + kernels.gemv_chunk - 1) / kernels.gemv_chunk * kernels.gemv_chunk;
  if (T * stride * static_cast<int64_t>(sizeof(float)) > kWorkerScratchBytes) return false;
  float* ordered = cpu.pool.scratch<float>(0);  // this thread's; the others only read it
  for (int64_t t = 0; t < T; ++t) kernels.order(ordered + t * stride, x + t * K, K);
  args.x = ordered;
  args.x_stride = stride;
  if (w.storage == Storage::kBnb4) {
    args.weight = w.bnb4.codes;
    args.scales = w.bnb4.absmax;
    args.values = bnb4_values(w.bnb4.codebook);
    run_gemv(args, kernels.gemv_bnb4, cpu);
    return true;
  }
  const auto add = [&](const Nvfp4View& packed) {
    args.weight = packed.codes;
    args.scales = packed.scales;
    args.global_scale = packed.global_scale;
    run_gemv(args, kernels.gemv_nvfp4, cpu);
    args.accumulate = true;
  };
  add(w.packed);
  if (w.has_residual()) add(w.residual);
  return true;
}

}  // namespace

const LinearKernels& linear_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return kLinearAvx512;
  if (isa == Isa::kAvx2) return kLinearAvx2;
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return kLinearNeon;
#endif
  return kLinearPortable;
}

void linear_cpu(float* y, const float* x, const WeightView& w, int64_t T, bool accumulate, const Cpu& cpu) {
  if (linear_gemv(y, x, w, T, accumulate, cpu)) return;
  const int64_t N = w.rows, K = w.cols;
  gemm_cpu({.c = y,
            .c_stride = N,
            .a = activations(x, T, K, K, true),
            .b = {w, K, true},
            .rows = T,
            .cols = N,
            .depth = K,
            .accumulate = accumulate},
           cpu);
}

void linear_backward_input_cpu(float* dx, const float* dy, const WeightView& w, int64_t T, bool accumulate,
                               const Cpu& cpu) {
  const int64_t N = w.rows, K = w.cols;
  gemm_cpu({.c = dx,
            .c_stride = K,
            .a = activations(dy, T, N, N, true),
            .b = {w, K, false},
            .rows = T,
            .cols = K,
            .depth = N,
            .accumulate = accumulate},
           cpu);
}

void linear_backward_weight_cpu(const LinearWeightGradient& args, const Cpu& cpu) {
  gemm_cpu({.c = args.dw,
            .c_stride = args.K,
            .a = activations(args.dy + args.row_begin, args.T, args.row_count, args.N, false),
            .b = activations(args.x, args.T, args.K, args.K, false),
            .rows = args.row_count,
            .cols = args.K,
            .depth = args.T,
            .accumulate = args.accumulate},
           cpu);
}

void dequantize_rows_cpu(float* out, const WeightView& w, int64_t row_begin, int64_t row_count, const Cpu& cpu) {
  const LinearKernels& kernels = linear_kernels(cpu.isa);
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, w.cols));  // 64 KiB of output a piece
  cpu.pool.run(row_count, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      decode_row(out + row * w.cols, w, w.cols, row_begin + row, 0, w.cols, kernels);
    }
  });
}

void linear_reference_cpu(float* y, const float* x, const WeightView& w, int64_t T, const Cpu& cpu) {
  const int64_t N = w.rows, K = w.cols;
  cpu.pool.run(N, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < T; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += x[t * K + k] * reference_value(w, n * K + k);
        y[t * N + n] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace qn
