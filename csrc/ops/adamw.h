// One AdamW step on rows of one parameter, with the weight and both moments in the form they are stored in.
//
//   m += a (g − m)        a = (1 − β1) / (1 − β1^t)      the moments are kept bias-corrected
//   v += b (g² − v)       b = (1 − β2) / (1 − β2^t)
//   u  = m / (√v + ε)     of this step's m and v, before they are rounded for storage
//   x  = x · keep − rate · u
//
// A weight stored in NVFP4 is worked on in units of its global scale, where its values e2m1 · e4m3 are exact in f32:
// rate = lr / global, and with two-level scales decoupled weight decay multiplies the global scale once a step instead
// of rounding every element (keep = 1). docs/numerics.md has the layouts, the rounding rules and their reasons.
//
// All arithmetic is f32 from + − · / √ and fused multiply-adds alone (ops/adamw_math.h, adamw_packed.h), so every
// instruction set gives the same bytes. Random bits are addressed by (seed, element, parameter, step, stream): results
// do not depend on chunks or threads. A block of 16 whose update is zero keeps every bit of its codes and scale.
#pragma once

#include <cstdint>

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

struct Cpu;

// What stands behind a weight that is stored in NVFP4.
enum class WeightMode : uint8_t {
  kNvfp4,          // nothing: codes are rounded stochastically under sticky scales
  kNvfp4Residual,  // a second NVFP4 tensor (global / 8) with what the nearest codes miss, itself rounded stochastically
  kBf16,           // a bf16 master, rounded stochastically; the codes are its nearest
  kFp32,           // an f32 master; the codes are its nearest
};

// nvfp4 and int8 need K % 16 == 0.
enum class MomentFormat : uint8_t { kNvfp4, kInt8, kBf16, kFp32 };

// A stored moment f[N, K].
//            values                     scales         rows
//   kNvfp4   E2M1 u8[N, K/2]            u8[N, K/16]    f32[N]
//   kInt8    i8[N, K]                   u8[N, K/16]    f32[N]
//   kBf16    u16[N, K]                  –              –
//   kFp32    f32[N, K]                  –              –
// Second moment: v = 2^centre · exp(l), l = code · e4m3(scale) in octaves, scale a power of two, exp(l) 2^l to .3 %
// (docs/numerics.md); so v is never zero. Its row is the centre, a multiple of 1/4, plus 2^-15 times by how many
// octaves the centre moves in the next step. First moment: value = code · e4m3(scale) · row · 2^((centre + l) / 2), row
// a power of two. Zeroed memory is the state before step 1, and of a row until its first gradient that is not zero.
struct MomentView {
  void* values = nullptr;
  uint8_t* scales = nullptr;
  float* rows = nullptr;
};
int64_t moment_value_bytes(MomentFormat format, int64_t count);  // of `values` for `count` elements
inline bool moment_has_scales(MomentFormat format) {
  return format == MomentFormat::kNvfp4 || format == MomentFormat::kInt8;
}

// |u| is cut at this for nvfp4 and int8 moments, just under AdamW's own bound (1 − β1) / √(1 − β2) = 3.16 for the usual
// betas: a v that was rounded down can not make a step that exact moments never make.
constexpr float kUpdateClip = 3.0f;

struct AdamwArgs {
  // Rows [row_begin, row_begin + row_count) of a parameter [N, K]. Only g is relative to row_begin.
  int64_t row_begin = 0, row_count = 0, K = 0;
  const float* g = nullptr;          // in f32[row_count, K], finite
  const uint16_t* g_bf16 = nullptr;  // CUDA only: the same in bf16, read in place of g when there
  float gradient_scale = 1;          // multiplies g: clipping, mean over micro-batches

  // The weight (in and out); pointers are to row 0.
  Storage storage = Storage::kF32;
  WeightMode mode = WeightMode::kNvfp4;  // read when storage is NVFP4
  void* dense = nullptr;                 // f32, f16 or bf16 [N, K]; f16 and bf16 are rounded stochastically
  uint8_t *codes = nullptr, *scales = nullptr;
  uint8_t *residual_codes = nullptr, *residual_scales = nullptr;  // kNvfp4Residual
  void* master = nullptr;  // kBf16: u16[N, K], kFp32: f32[N, K], in units of the global scale

  // The state (in and out).
  MomentFormat moments = MomentFormat::kFp32;
  MomentView m, v;

  // The step.
  float a = 1, b = 1, eps = 1e-8f;  // see the formula above
  float rate = 0, keep = 1;
  uint64_t seed = 0;
  uint32_t parameter = 0, step = 1;  // step counts from 1
  const uint32_t* stop = nullptr;    // CUDA only: where this is not 0 when the update runs, nothing happens
};

// What one row did; sum rows in order for totals that do not depend on chunks.
struct AdamwRow {
  double update_squares = 0;  // Σ u²
  int32_t changed_codes = 0;  // E2M1 weight codes that differ from before (NVFP4 storage)
  int32_t saturated = 0;      // blocks that wanted a scale over 448: see double_global_scale
};

// rows: out AdamwRow[row_count]. Touches nothing outside the rows. Needs K <= kAdamwMaxCols.
constexpr int64_t kAdamwMaxCols = 128 * 1024;
void adamw_cpu(AdamwRow* rows, const AdamwArgs& args, const Cpu& cpu);

// The same on the device, where every pointer is: rows, g, g_bf16, dense and masters 16-byte aligned, codes and values
// 8 (int8: 16). Every byte of weights and state is adamw_cpu's for the same g; Σ u² of a row is within 1e-6 (f32 sums
// of 16). Two runs give equal bytes; no scratch.
void adamw_cuda(AdamwRow* rows, const AdamwArgs& args, CudaStream stream);

// For a two-level tensor some block of which saturated: scales become half (exact, except that an odd scale below 2^-5
// rounds to its even neighbour) so that the caller can double the global scale. Masters are halved too.
void adamw_halve_scales(uint8_t* scales, int64_t count);

// Σ g² of each row, f64[row_count]; not finite when any element is not.
void row_squares_cpu(double* squares, const float* g, int64_t row_count, int64_t K, const Cpu& cpu);
// Where a step stops that meets a gradient which is not finite: *flag, on the device, becomes `mark` unless it is set.
// Null: nowhere.
struct StopFlag {
  uint32_t* flag = nullptr;
  uint32_t mark = 0;
};
// The CPU's bytes; g f32 or bf16 [row_count, K]. squares and g on the device.
void row_squares_cuda(double* squares, const float* g, int64_t row_count, int64_t K, const StopFlag& stop,
                      CudaStream stream);
void row_squares_bf16_cuda(double* squares, const uint16_t* g, int64_t row_count, int64_t K, const StopFlag& stop,
                           CudaStream stream);

// What an update did to one parameter.
struct UpdateTotals {
  double gradient_squares = 0, update_squares = 0;
  int64_t changed_codes = 0, saturated = 0;  // see AdamwRow
};
// Rows [begin, begin + count) of results and squares are those of one parameter.
struct RowRange {
  uint32_t parameter = 0;
  bool updated = false, measured = false;  // whether the results, the squares count
  int64_t begin = 0, count = 0;
};
// totals[parameter] of each range: sums of f64 in a fixed order, which depends on the count alone. `ranges` in host
// memory, everything else on the device.
void sum_rows_cuda(UpdateTotals* totals, const AdamwRow* results, const double* squares, const RowRange* ranges,
                   int64_t range_count, CudaStream stream);

// One step of vectors: dense weights of one row with f32 moments, g in f32. totals[parameter] is all that is told of
// each; one whose gradient is not finite stays as it is, which its gradient_squares say. The bytes of adamw_cuda.
void adamw_vectors_cuda(UpdateTotals* totals, const AdamwArgs* vectors, int64_t count, CudaStream stream);

// The first moment's storage by itself, without √v and with a row's own power of two (gradient accumulation uses it):
// x f32[row_count, K] to and from rows [row_begin, …) of `view`, rounded stochastically with the bits of (seed,
// parameter, step, kGradient).
struct StoreRowsArgs {
  int64_t row_begin = 0, row_count = 0, K = 0;
  MomentFormat format = MomentFormat::kFp32;
  MomentView view;
  uint64_t seed = 0;
  uint32_t parameter = 0, step = 0;
};
void store_rows_cpu(const StoreRowsArgs& args, const float* x, const Cpu& cpu);
void load_rows_cpu(float* x, const StoreRowsArgs& args, const Cpu& cpu);
// The CPU's bytes on the device, where every pointer is, x 16-byte aligned; K % 16 == 0.
void store_rows_cuda(const StoreRowsArgs& args, const float* x, CudaStream stream);
void load_rows_cuda(float* x, const StoreRowsArgs& args, CudaStream stream);

}  // namespace qn
