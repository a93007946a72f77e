// The portable rows and the entry points of ops/adamw.h.
#include "core/cpu.h"
#include "ops/adamw_rows.h"

namespace qn {

const AdamwKernels kAdamwPortable = kAdamwRows;

namespace {

const AdamwKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return kAdamwAvx512;
  if (isa == Isa::kAvx2) return kAdamwAvx2;
#endif
  // arm64 has no other level: NEON belongs to every such processor, so the portable rows are compiled with it.
  return kAdamwPortable;
}

// About 16k elements a piece: enough to hide the hand-out, few enough to spread one chunk over all threads.
int64_t row_grain(int64_t K) { return K >= 16384 ? 1 : 16384 / (K > 0 ? K : 1); }

}  // namespace

void check_adamw_columns(MomentFormat format, bool packed_weight, int64_t K) {
  if (K < 1 || K > kAdamwMaxCols) {
    fail(Code::kInvalidArgument, "Expected 1 to %lld columns for adamw but received %lld", (long long)kAdamwMaxCols,
         (long long)K);
  }
  if ((moment_has_scales(format) || packed_weight) && K % 16 != 0) {
    fail(Code::kInvalidArgument, "Expected a multiple of 16 columns for a packed state but received %lld",
         (long long)K);
  }
}

int64_t moment_value_bytes(MomentFormat format, int64_t count) {
  switch (format) {
    case MomentFormat::kNvfp4:
      return count / 2;
    case MomentFormat::kInt8:
      return count;
    case MomentFormat::kBf16:
      return count * 2;
    case MomentFormat::kFp32:
      return count * 4;
  }
  return 0;
}

void adamw_cpu(AdamwRow* rows, const AdamwArgs& args, const Cpu& cpu) {
  check_adamw_columns(args.moments, args.storage == Storage::kNvfp4, args.K);
  const AdamwKernels& kernels = kernels_of(cpu.isa);
  cpu.pool.run(args.row_count, row_grain(args.K), [&](int64_t begin, int64_t end, int worker) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.update(args, args.row_begin + row, cpu.pool.scratch<float>(worker), rows + row);
    }
  });
}

void adamw_halve_scales(uint8_t* scales, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = scales[i];
    // Below 16 values are code · 2^-9: half of an odd code lies between two, the even one is taken.
    scales[i] = static_cast<uint8_t>(code >= 16 ? code - 8 : (code + ((code >> 1) & 1)) >> 1);
  }
}

void row_squares_cpu(double* squares, const float* g, int64_t row_count, int64_t K, const Cpu& cpu) {
  const AdamwKernels& kernels = kernels_of(cpu.isa);
  cpu.pool.run(row_count, row_grain(K), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) squares[row] = kernels.squares(g + row * K, K);
  });
}

void store_rows_cpu(const StoreRowsArgs& args, const float* x, const Cpu& cpu) {
  check_adamw_columns(args.format, false, args.K);
  const AdamwKernels& kernels = kernels_of(cpu.isa);
  cpu.pool.run(args.row_count, row_grain(args.K), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) kernels.store(args, args.row_begin + row, x + row * args.K);
  });
}

void load_rows_cpu(float* x, const StoreRowsArgs& args, const Cpu& cpu) {
  check_adamw_columns(args.format, false, args.K);
  const AdamwKernels& kernels = kernels_of(cpu.isa);
  cpu.pool.run(args.row_count, row_grain(args.K), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) kernels.load(args, args.row_begin + row, x + row * args.K);
  });
}

}  // namespace qn
