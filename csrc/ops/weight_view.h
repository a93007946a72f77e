// How ops see a weight matrix: not owned, in whatever form it is stored.
#pragma once

#include <cstdint>

#include "format/bnb4.h"

namespace qn {

// Optimizer files hold the numbers of the first four.
enum class Storage : uint8_t { kNvfp4, kF32, kF16, kBF16, kBnb4 };

// Whether it has codes u8[N, K/2] and, beside them, an eighth as many bytes of scales: e4m3[N, K/16] or f32[N, K/64].
constexpr bool is_packed(Storage storage) { return storage == Storage::kNvfp4 || storage == Storage::kBnb4; }

// One NVFP4 tensor (format/nvfp4.h): value[n, k] = e2m1(codes) * e4m3(scales) * global_scale.
struct Nvfp4View {
  const uint8_t* codes = nullptr;   // u8[N, K/2], low nibble = even column
  const uint8_t* scales = nullptr;  // e4m3[N, K/16], row-major, never negative, never NaN
  float global_scale = 1.0f;
};

// One bitsandbytes tensor (format/bnb4.h): value[n, k] = values[codes] * absmax.
struct Bnb4View {
  const uint8_t* codes = nullptr;  // u8[N, K/2], low nibble = even column
  const float* absmax = nullptr;   // f32[N, K/64]
  Codebook codebook = Codebook::kNf4;
};

// w[N, K]. A dense weight has `dense`; an NVFP4 weight has `packed` and, when trained with one, `residual`
// (value = packed + residual, each decoded to f32 first), a bitsandbytes weight `bnb4`. K % 16 == 0 for NVFP4, K % 64
// == 0 for bitsandbytes.
struct WeightView {
  Storage storage = Storage::kF32;
  int64_t rows = 0, cols = 0;
  const void* dense = nullptr;  // f32, f16 or bf16 [N, K]
  Nvfp4View packed;
  Nvfp4View residual;  // codes == nullptr: none
  Bnb4View bnb4;

  bool has_residual() const { return residual.codes != nullptr; }
  // The same matrix, rows [begin, begin + count) only.
  WeightView slice_rows(int64_t begin, int64_t count) const;
};

}  // namespace qn
