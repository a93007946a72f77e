// What the matrix products take from an instruction set. One table per level; linear_kernels() picks it at run time.
//
// The files that fill these tables are compiled with their own flags, so they include nothing but this header and the
// compiler's intrinsics: an inline function of the library compiled there could be chosen by the linker for everyone.
#pragma once

#include <cstdint>

namespace qn {

// Columns of one pass of a matrix-vector product are stored in lookup order, see LinearKernels::order.
struct GemvArgs {
  float* y;             // in/out f32[T, N], y += with accumulate
  const float* x;       // in f32[T, x_stride], as `order` wrote it for packed weights, plain for dense ones
  const void* weight;   // codes u8[N, K/2] or dense [N, K]
  const void* scales;   // e4m3[N, K/16] of NVFP4, f32[N, K/64] of bitsandbytes
  float global_scale;   // of NVFP4
  const float* values;  // the sixteen of bitsandbytes codes
  int64_t T, N, K;
  int64_t x_stride;
  bool accumulate;
};

struct LinearKernels {
  // The register tile: c[rows <= tile_rows, cols <= tile_cols] (+)= aᵀ[depth, tile_rows] · b[depth, tile_cols], one
  // chain of additions per element in the order of depth. Panels are 64-byte aligned; lanes past rows/cols are ignored.
  int64_t tile_rows, tile_cols;  // tile_cols % 16 == 0
  void (*multiply)(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t rows,
                   int64_t cols, bool accumulate);

  // panel[k][lane] = source[lane][k], lanes [0, lanes) of `width`; the lanes after that are zeroed.
  void (*transpose)(float* panel, int64_t width, const float* source, int64_t stride, int64_t lanes, int64_t depth);

  // panels[lane / width][k][lane % width] = source[k][lane] for lanes [0, lanes), panels `panel_stride` floats and rows
  // of the source `stride` apart; the lanes of the last panel after that are zeroed.
  void (*copy)(float* panels, int64_t panel_stride, int64_t width, const float* source, int64_t stride, int64_t lanes,
               int64_t depth);

  // out[0, count) from packed storage; with add, out += (one rounding each). count % 16 == 0 for NVFP4.
  void (*decode_nvfp4)(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t count,
                       bool add);
  // out[i] = values[code i] · absmax[(first + i) / 64] from bitsandbytes codes; first and count % 16 == 0.
  void (*decode_bnb4)(float* out, const uint8_t* codes, const float* absmax, const float* values, int64_t first,
                      int64_t count);
  void (*decode_f16)(float* out, const uint16_t* source, int64_t count);
  void (*decode_bf16)(float* out, const uint16_t* source, int64_t count);
  // Finite values to nearest even; what is too large becomes an infinity.
  void (*encode_f16)(uint16_t* out, const float* source, int64_t count);

  // Matrix-vector products for T in [1, gemv_tokens], rows [begin, end) of the weight; none when gemv_tokens is 0.
  // Every (token, row) has its own fixed order of additions, the same for all T.
  int64_t gemv_tokens;
  int64_t gemv_chunk;  // x rows of packed products are padded to this many columns
  // ordered f32[chunks · gemv_chunk] = x[K] in the order in which gemv_nvfp4 and gemv_bnb4 meet the codes, zero-padded.
  void (*order)(float* ordered, const float* x, int64_t K);
  void (*gemv_nvfp4)(const GemvArgs& args, int64_t begin, int64_t end);
  void (*gemv_bnb4)(const GemvArgs& args, int64_t begin, int64_t end);
  void (*gemv_f32)(const GemvArgs& args, int64_t begin, int64_t end);
  void (*gemv_f16)(const GemvArgs& args, int64_t begin, int64_t end);
  void (*gemv_bf16)(const GemvArgs& args, int64_t begin, int64_t end);
};

extern const LinearKernels kLinearPortable;
extern const LinearKernels kLinearAvx2;    // x86-64 builds only
extern const LinearKernels kLinearAvx512;  // x86-64 builds only
extern const LinearKernels kLinearNeon;    // arm64 builds only

}  // namespace qn
