#include "ops/quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/status.h"

namespace qn {

namespace {

// Pieces of about 64 Ki elements: long enough to hide the hand-out, short enough to share and to cancel.
int64_t rows_per_piece(int64_t K) { return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, K)); }

// The bits of |x| order like the magnitudes, with infinities and NaNs on top.
uint32_t largest_magnitude_bits(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu);
  }
  return largest;
}

void refuse_nonfinite(const float* x, int64_t N, int64_t K, int64_t first_row) {
  for (int64_t i = 0; i < N * K; ++i) {
    if (!std::isfinite(x[i])) {
      fail(Code::kNonFiniteWeight, "the value at row %lld, column %lld is %g, which NVFP4 cannot hold",
           static_cast<long long>(first_row + i / K), static_cast<long long>(i % K), static_cast<double>(x[i]));
    }
  }
}

}  // namespace

void quantize_nvfp4_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end, Isa isa) {
#if defined(__x86_64__)
  if (args.rounding == Rounding::kNearestEven) {
    if (isa == Isa::kAvx512) return quantize_nvfp4_rows_avx512(args, row_begin, row_end);
    if (isa == Isa::kAvx2) return quantize_nvfp4_rows_avx2(args, row_begin, row_end);
  }
#endif
  quantize_nvfp4_rows(args, row_begin, row_end);
}

void dequantize_nvfp4_rows(const DequantizeArgs& args, int64_t row_begin, int64_t row_end, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return dequantize_nvfp4_rows_avx512(args, row_begin, row_end);
  if (isa == Isa::kAvx2) return dequantize_nvfp4_rows_avx2(args, row_begin, row_end);
#endif
  dequantize_nvfp4_rows(args.out, args.codes, args.scales, args.global_scale, args.K, row_begin, row_end);
}

void quantize_nvfp4_cpu(const QuantizeArgs& args, const Cpu& cpu) {
  cpu.pool.run(args.N, rows_per_piece(args.K), [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    quantize_nvfp4_rows(args, begin, end, cpu.isa);
  });
}

void dequantize_nvfp4_cpu(const DequantizeArgs& args, const Cpu& cpu) {
  cpu.pool.run(args.N, rows_per_piece(args.K), [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    dequantize_nvfp4_rows(args, begin, end, cpu.isa);
  });
}

float amax_cpu(const float* x, int64_t N, int64_t K, const Cpu& cpu, int64_t first_row) {
  std::atomic<uint32_t> largest{0};
  cpu.pool.run(N, rows_per_piece(K), [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    const uint32_t bits = largest_magnitude_bits(x + begin * K, (end - begin) * K);
    uint32_t seen = largest.load(std::memory_order_relaxed);
    while (seen < bits && !largest.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
    }
  });
  if (largest.load() >= 0x7f800000u) refuse_nonfinite(x, N, K, first_row);
  return __builtin_bit_cast(float, largest.load());
}

}  // namespace qn
