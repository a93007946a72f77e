#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/initialize.h"
#include "ops/normal.h"

namespace qn {

namespace {

// 4096 quads a piece, whatever the shape.
constexpr int64_t kPiece = 16384;

void store(const InitializeArgs& args, int64_t at, float value) {
  if (args.storage == Storage::kF32) {
    static_cast<float*>(args.dense)[at] = value;
  } else {
    static_cast<uint16_t*>(args.dense)[at] = args.storage == Storage::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
}

void fill_dense(const InitializeArgs& args, int64_t begin, int64_t end) {
  float values[4];
  for (int64_t at = begin; at < end; at += 4) {
    draw_normal_quad(values, args.seed, args.parameter, args.stddev, at / 4);
    for (int64_t i = at; i < end && i < at + 4; ++i) store(args, i, values[i - at]);
  }
}

void fill_nvfp4(const InitializeArgs& args, int64_t begin, int64_t end) {
  float values[kBlockSize];
  for (int64_t at = begin; at < end; at += kBlockSize) {
    for (int i = 0; i < kBlockSize; i += 4) {
      draw_normal_quad(values + i, args.seed, args.parameter, args.stddev, (at + i) / 4);
    }
    quantize_nvfp4_block(args.codes + at / 2, args.scales + at / kBlockSize, values, args.global_scale,
                         Rounding::kNearestEven, ScaleRule::kAmax, RandomKey{}, at);
  }
}

}  // namespace

void initialize_normal_cpu(const InitializeArgs& args, const Cpu& cpu) {
  cpu.pool.run(args.count, kPiece, [&](int64_t begin, int64_t end, int) {
    cpu.check_cancelled();
    args.storage == Storage::kNvfp4 ? fill_nvfp4(args, begin, end) : fill_dense(args, begin, end);
  });
}

}  // namespace qn
