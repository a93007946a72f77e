#include <cstring>

#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/embedding.h"

namespace qn {

namespace {

constexpr int64_t kRowsPerPiece = 8;
constexpr int64_t kColumnsPerPiece = 256;

float packed_value(const Nvfp4View& view, int64_t row, int64_t column, int64_t cols) {
  const uint8_t byte = view.codes[row * (cols / 2) + column / 2];
  const uint32_t code = column % 2 == 0 ? byte & 15u : byte >> 4;
  // code · scale has at most 6 significant bits, so only the global scale rounds.
  return e2m1_to_f32(code) * e4m3_to_f32(view.scales[row * (cols / kBlockSize) + column / kBlockSize]) *
         view.global_scale;
}

void decode_row(float* x, const WeightView& w, int64_t row) {
  const int64_t H = w.cols;
  switch (w.storage) {
    case Storage::kF32:
      std::memcpy(x, static_cast<const float*>(w.dense) + row * H, static_cast<size_t>(H) * sizeof(float));
      return;
    case Storage::kF16:
      for (int64_t h = 0; h < H; ++h) x[h] = f16_to_f32(static_cast<const uint16_t*>(w.dense)[row * H + h]);
      return;
    case Storage::kBF16:
      for (int64_t h = 0; h < H; ++h) x[h] = bf16_to_f32(static_cast<const uint16_t*>(w.dense)[row * H + h]);
      return;
    case Storage::kNvfp4:
      for (int64_t h = 0; h < H; ++h) x[h] = packed_value(w.packed, row, h, H);
      if (!w.has_residual()) return;
      for (int64_t h = 0; h < H; ++h) x[h] += packed_value(w.residual, row, h, H);
      return;
    case Storage::kBnb4:
      for (int64_t h = 0; h < H; ++h) {
        const int64_t at = row * H + h;
        x[h] = bnb4_to_f32(w.bnb4.codes[at / 2] >> (4 * (at % 2)), w.bnb4.absmax[at / kBnb4BlockSize], w.bnb4.codebook);
      }
      return;
  }
}

}  // namespace

void embedding_cpu(float* x, const WeightView& w, const int32_t* ids, int64_t T, const Cpu& cpu) {
  cpu.pool.run(T, kRowsPerPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) decode_row(x + t * w.cols, w, ids[t]);
  });
}

// Split over columns, so that every thread adds its part of a row in the order of t.
void embedding_backward_cpu(float* dw, const float* dx, const int32_t* ids, int64_t T, int64_t H, int64_t row_begin,
                            int64_t row_count, const Cpu& cpu) {
  cpu.pool.run(H, kColumnsPerPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = ids[t] - row_begin;
      if (row < 0 || row >= row_count) continue;
      for (int64_t h = begin; h < end; ++h) dw[row * H + h] += dx[t * H + h];
    }
  });
}

}  // namespace qn
