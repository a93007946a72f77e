#include "model/fold_residual.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/status.h"
#include "format/nvfp4.h"
#include "model/host_rows.h"
#include "ops/linear.h"
#include "ops/quantize.h"

namespace qn {

namespace {

// Elements that are decoded at a time: 8 MiB of f32.
constexpr int64_t kChunk = 2 << 20;

struct RowSquares {
  double error = 0, sum = 0;
};

}  // namespace

FoldedResidual fold_residual(uint8_t* codes, uint8_t* scales, Model& model, const Parameter& parameter, bool two_level,
                             const Cpu& cpu) {
  const int64_t N = parameter.rows, K = parameter.cols;
  if (!parameter.residual_codes) fail(Code::kInvalidArgument, "%s has no residual to fold", parameter.name.c_str());
  const int64_t chunk = std::min(N, std::max<int64_t>(1, kChunk / K));
  MemoryLedger& ledger = model.device().host_ledger();
  HostRows host(model.device(), parameter, chunk);
  Buffer sums(ledger, MemoryKind::kScratch, chunk * K * 4), back(ledger, MemoryKind::kScratch, chunk * K * 4);
  float *sum = sums.as<float>(), *folded = back.as<float>();

  float amax = 0;
  for (int64_t row = 0; two_level && row < N; row += chunk) {
    const int64_t count = std::min(chunk, N - row);
    dequantize_rows_cpu(sum, host.rows(row, count), 0, count, cpu);
    amax = std::max(amax, amax_cpu(sum, count, K, cpu, row));
  }

  FoldedResidual result{two_level ? two_level_global_scale(amax) : 1.0f, 0};
  RowSquares total;
  std::vector<RowSquares> rows(static_cast<size_t>(chunk));
  for (int64_t row = 0; row < N; row += chunk) {
    const int64_t count = std::min(chunk, N - row);
    uint8_t *row_codes = codes + row * (K / 2), *row_scales = scales + row * (K / kBlockSize);
    dequantize_rows_cpu(sum, host.rows(row, count), 0, count, cpu);
    quantize_nvfp4_cpu(
        {row_codes, row_scales, sum, count, K, result.global_scale, Rounding::kNearestEven, ScaleRule::kAmax, {}}, cpu);
    dequantize_nvfp4_cpu({folded, row_codes, row_scales, count, K, result.global_scale}, cpu);
    cpu.pool.run(count, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        RowSquares squares;
        for (int64_t i = r * K; i < (r + 1) * K; ++i) {
          const double error = static_cast<double>(folded[i]) - static_cast<double>(sum[i]);
          squares.error += error * error;
          squares.sum += static_cast<double>(sum[i]) * static_cast<double>(sum[i]);
        }
        rows[static_cast<size_t>(r)] = squares;
      }
    });
    for (int64_t r = 0; r < count; ++r) {
      total.error += rows[static_cast<size_t>(r)].error;
      total.sum += rows[static_cast<size_t>(r)].sum;
    }
  }
  if (total.sum > 0) result.relative_rms_error = std::sqrt(total.error / total.sum);
  return result;
}

}  // namespace qn
