// A tensor to NVFP4 and back on all threads (format/nvfp4.h defines the bytes; these add nothing to them).
//
//   quantize     x f32[N, K] → codes u8[N, K/2], scales e4m3[N, K/16]
//   dequantize   codes, scales → out f32[N, K]
//   amax         max |x| over f32[N, K]
//
// K % 16 == 0 for the first two. No argument may alias another. Every instruction set and any number of threads give
// the bytes of quantize_nvfp4_rows(), and so does CUDA. No scratch.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"
#include "format/nvfp4.h"

namespace qn {

// Error(kNonFiniteWeight) names a row and column of x that is infinite or NaN; codes and scales are then half written.
void quantize_nvfp4_cpu(const QuantizeArgs& args, const Cpu& cpu);

struct DequantizeArgs {
  float* out;             // out f32[N, K]
  const uint8_t* codes;   // in u8[N, K/2]
  const uint8_t* scales;  // in e4m3[N, K/16]
  int64_t N, K;
  float global_scale;
};
void dequantize_nvfp4_cpu(const DequantizeArgs& args, const Cpu& cpu);

// 0 when there is no element. Error(kNonFiniteWeight) names the first row, counted from first_row, and column that is
// infinite or NaN.
float amax_cpu(const float* x, int64_t N, int64_t K, const Cpu& cpu, int64_t first_row = 0);

#if defined(QN_WITH_CUDA)
// All pointers on the device, x and out 16-byte aligned, codes 8-byte aligned. Nothing is allocated and nothing waits.
// A value that is infinite or NaN makes *first_bad = min(*first_bad, element index), which the caller sets to
// UINT64_MAX before; its block is then meaningless.
void quantize_nvfp4_cuda(const QuantizeArgs& args, uint64_t* first_bad, CudaStream stream);
// The same of x bf16[N, K]: the bytes of quantize_nvfp4_cuda of x widened to f32.
void quantize_nvfp4_bf16_cuda(const uint16_t* x, const QuantizeArgs& args_without_x, uint64_t* first_bad,
                              CudaStream stream);
// The same to nearest by the amax rule, with a global scale, a power of two, that lies on the device.
void quantize_nvfp4_bf16_cuda(uint8_t* codes, uint8_t* scales, const uint16_t* x, int64_t N, int64_t K,
                              const float* global_scale, uint64_t* first_bad, CudaStream stream);

// *amax = max(*amax, max |x|) over count elements, a multiple of 8; the caller sets it to 0 before. Not finite, as
// *first_bad, when an element is not.
void amax_cuda(float* amax, uint64_t* first_bad, const float* x, int64_t count, CudaStream stream);
void amax_bf16_cuda(float* amax, uint64_t* first_bad, const uint16_t* x, int64_t count, CudaStream stream);

// Global scales are below 2^120.
void dequantize_nvfp4_cuda(const DequantizeArgs& args, CudaStream stream);
// The same to bf16, rounded once to nearest even: exact when the global scale is a power of two.
void dequantize_nvfp4_bf16_cuda(uint16_t* out, const DequantizeArgs& args_without_out, CudaStream stream);

// Some columns of up to three matrices one below the other, each with its own factor in place of a global scale.
constexpr int kMaxDequantizeParts = 3;
struct DequantizeTileCuda {
  struct Part {
    const uint8_t* codes;   // in, the first code wanted: of rows `stride / 2` bytes apart
    const uint8_t* scales;  // in, the first scale wanted: of rows `stride / 16` bytes apart
    int64_t rows;
    float factor;
  };
  uint16_t* out;  // out bf16[Σ rows, cols]
  Part parts[kMaxDequantizeParts];
  int part_count;
  int64_t cols, stride;  // multiples of 16
};
void dequantize_tile_cuda(const DequantizeTileCuda& args, CudaStream stream);
#endif

// The rows of quantize_nvfp4_rows() and dequantize_nvfp4_rows() by the kernels of an instruction set, one thread.
void quantize_nvfp4_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end, Isa isa);
void dequantize_nvfp4_rows(const DequantizeArgs& args, int64_t row_begin, int64_t row_end, Isa isa);

#if defined(__x86_64__)
// Nearest-even rounding only, any scale rule.
void quantize_nvfp4_rows_avx2(const QuantizeArgs& args, int64_t row_begin, int64_t row_end);
void dequantize_nvfp4_rows_avx2(const DequantizeArgs& args, int64_t row_begin, int64_t row_end);
void quantize_nvfp4_rows_avx512(const QuantizeArgs& args, int64_t row_begin, int64_t row_end);
void dequantize_nvfp4_rows_avx512(const DequantizeArgs& args, int64_t row_begin, int64_t row_end);
#endif

}  // namespace qn
