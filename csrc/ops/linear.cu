#include "ops/linear.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/gemv_backward_input.h"
#include "ops/gemv_bnb4.h"
#include "ops/quantize.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

// Whole tiles of cuBLASLt, and starts of slices aligned for any algorithm.
constexpr int64_t kSliceRows = 128;
constexpr int64_t kSliceCols = 64;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The length of slices of equal size, a multiple of `unit`, that cut `length` so that each has at most `most`, or one
// unit.
int64_t slice_length(int64_t length, int64_t most, int64_t unit) {
  const int64_t longest = std::max(most / unit * unit, unit), slices = (length + longest - 1) / longest;
  const int64_t even = (length + slices - 1) / slices;
  return std::min((even + unit - 1) / unit * unit, length);
}
int64_t slice_rows(int64_t rows, int64_t cols, int64_t bytes) {
  return slice_length(rows, bytes / (2 * cols), kSliceRows);
}
int64_t slice_cols(int64_t rows, int64_t cols, int64_t bytes) {
  return slice_length(cols, bytes / (2 * rows), kSliceCols);
}

// One product: rows [first_row, first_row + rows) of a stack, dense or to be decoded, times alpha.
struct Term {
  const uint16_t* dense;    // or
  Bnb4View bnb4;            // or
  DequantizeTileCuda tile;  // all of its rows and columns, without `out`; of bnb4 without parts
  float alpha;
  int64_t first_row, rows;
  bool adds;  // to another term of the same rows
};

// At most a packed weight and its residual of every part.
struct Terms {
  Term terms[2 * kMaxDequantizeParts];
  int count = 0;
  const Term* begin() const { return terms; }
  const Term* end() const { return terms + count; }
};

DequantizeTileCuda::Part tile_part(const Nvfp4View& view, int64_t rows, float factor) {
  return {view.codes, view.scales, rows, factor};
}

// A power of two that takes no code · scale, of 2^-10 to 2688, out of bf16's normal numbers.
bool keeps_exact(float scale) {
  int exponent = 0;
  return std::frexp(scale, &exponent) == 0.5f && std::abs(exponent) < 100;
}

// How the packed weights of a stack become one product, if they do.
enum class Join : uint8_t { kNot, kOneScale, kScaleEach };
Join join_of(const WeightStack& w) {
  if (w.count() == 1)
    return w.begin()->storage == Storage::kNvfp4 && !w.begin()->has_residual() ? Join::kOneScale : Join::kNot;
  bool equal = true, exact = true;
  for (const WeightView& part : w) {
    if (part.storage != Storage::kNvfp4 || part.has_residual()) return Join::kNot;
    equal = equal && part.packed.global_scale == w.begin()->packed.global_scale;
    exact = exact && keeps_exact(part.packed.global_scale);
  }
  return equal ? Join::kOneScale : exact ? Join::kScaleEach : Join::kNot;
}

Terms terms_of(const WeightStack& w) {
  if (w.count() < 1 || w.count() > kMaxDequantizeParts) {
    fail(Code::kInternal, "a stack of %d weights", w.count());
  }
  Terms terms;
  if (const Join join = join_of(w); join != Join::kNot) {
    Term& term = terms.terms[terms.count++] = {};
    term.alpha = join == Join::kOneScale ? w.begin()->packed.global_scale : 1.0f;
    term.rows = w.rows();
    term.tile.cols = term.tile.stride = w.cols();
    for (const WeightView& part : w) {
      const float factor = join == Join::kOneScale ? 1.0f : part.packed.global_scale;
      term.tile.parts[term.tile.part_count++] = tile_part(part.packed, part.rows, factor);
    }
    return terms;
  }
  int64_t first_row = 0;
  for (const WeightView& part : w) {
    if (part.rows == 0) continue;
    Term term = {};
    term.first_row = first_row;
    term.rows = part.rows;
    term.alpha = 1.0f;
    if (part.storage == Storage::kBF16) {
      term.dense = static_cast<const uint16_t*>(part.dense);
      terms.terms[terms.count++] = term;
    } else if (part.storage == Storage::kNvfp4) {
      term.tile.cols = term.tile.stride = w.cols();
      term.tile.part_count = 1;
      for (const Nvfp4View* packed : {&part.packed, &part.residual}) {
        if (!packed->codes) continue;
        term.tile.parts[0] = tile_part(*packed, part.rows, 1.0f);
        term.alpha = packed->global_scale;
        terms.terms[terms.count++] = term;
        term.adds = true;
      }
    } else if (part.storage == Storage::kBnb4) {
      term.bnb4 = part.bnb4;
      term.tile.cols = term.tile.stride = w.cols();
      terms.terms[terms.count++] = term;
    } else {
      fail(Code::kUnsupported, "dense weights on CUDA are bf16");
    }
    first_row += part.rows;
  }
  return terms;
}

// The least scratch for decoded rows or columns, and what slices of up to `bytes` take.
int64_t row_slice_bytes(const Terms& terms, int64_t bytes) {
  int64_t most = 0;
  for (const Term& term : terms) {
    const int64_t cols = term.tile.cols;
    if (!term.dense) most = std::max(most, align256(slice_rows(term.rows, cols, bytes) * cols * 2));
  }
  return most;
}
int64_t col_slice_bytes(const Terms& terms, int64_t bytes) {
  int64_t most = 0;
  for (const Term& term : terms) {
    if (!term.dense) most = std::max(most, align256(slice_cols(term.rows, term.tile.cols, bytes) * term.rows * 2));
  }
  return most;
}

// Decodes rows [row, row + rows) and columns [col, col + cols) of a term to `out`.
void decode(uint16_t* out, const Term& term, int64_t row, int64_t rows, int64_t col, int64_t cols, CudaStream stream) {
  if (term.bnb4.codes) return dequantize_bnb4_cuda({out, term.bnb4, row, rows, col, cols, term.tile.stride}, stream);
  DequantizeTileCuda tile = {};
  tile.out = out;
  tile.cols = cols;
  tile.stride = term.tile.stride;
  for (int i = 0; i < term.tile.part_count && rows > 0; ++i) {
    DequantizeTileCuda::Part part = term.tile.parts[i];
    const int64_t skipped = std::min(row, part.rows), taken = std::min(rows, part.rows - skipped);
    const int64_t element = skipped * tile.stride + col;
    row -= skipped;
    rows -= taken;
    if (taken == 0) continue;
    tile.parts[tile.part_count++] = {part.codes + element / 2, part.scales + element / kBlockSize, taken, part.factor};
  }
  dequantize_tile_cuda(tile, stream);
}

// computes   y = bf16(sum) or, with accumulate, bf16(y + sum)
// moves      read 4 B, write 2 B an element (accumulate: + 2 B read)      bound: memory
// launch     grid ceil(count/4 / 256), block 256, smem 0                  four elements a thread
// needs      count % 4 == 0, sum 16-byte and y 8-byte aligned
// numerics   f32, one rounding to nearest even
// measured   not yet
__global__ void round_sum_kernel(uint16_t* __restrict__ y, const float* __restrict__ sum, int64_t count,
                                 bool accumulate) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  if (at >= count) return;
  const float4 four = *reinterpret_cast<const float4*>(sum + at);
  const float values[4] = {four.x, four.y, four.z, four.w};
  union {
    uint16_t value[4];
    uint2 word;
  } result;
  if (accumulate) result.word = *reinterpret_cast<const uint2*>(y + at);
  for (int i = 0; i < 4; ++i) {
    result.value[i] = f32_to_bf16(accumulate ? bf16_to_f32(result.value[i]) + values[i] : values[i]);
  }
  *reinterpret_cast<uint2*>(y + at) = result.word;
}

// Scratch: the workspace of cuBLASLt, then `reserved` bytes, then as many decoded rows as fit.
struct Scratch {
  CublasWorkspace workspace;
  uint8_t* reserved;
  uint16_t* slice;
  int64_t slice_bytes;
};

Scratch divide(const LinearCuda& cuda, int64_t reserved, int64_t least_slice) {
  auto* base = static_cast<uint8_t*>(cuda.scratch);
  const int64_t before = kCublasWorkspaceBytes + align256(reserved);
  if (cuda.scratch_bytes < before + least_slice) {
    fail(Code::kInternal, "a matrix product got %lld bytes of scratch and needs %lld",
         static_cast<long long>(cuda.scratch_bytes), static_cast<long long>(before + least_slice));
  }
  return {{base, kCublasWorkspaceBytes},
          base + kCublasWorkspaceBytes,
          reinterpret_cast<uint16_t*>(base + before),
          cuda.scratch_bytes - before};
}

void clear(void* out, CudaFloat type, int64_t count, bool accumulate, CudaStream stream) {
  if (accumulate || count == 0) return;
  const int64_t bytes = count * (type == CudaFloat::kF32 ? 4 : 2);
  QN_CUDA_CHECK(cudaMemsetAsync(out, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
}

GemmBf16 forward_product(void* y, CudaFloat y_type, const uint16_t* x, const uint16_t* rows, int64_t row_count,
                         const WeightStack& w, int64_t T) {
  GemmBf16 gemm{};
  gemm.c = y;
  gemm.a = x;
  gemm.b = rows;
  gemm.M = T;
  gemm.N = row_count;
  gemm.K = w.cols();
  gemm.a_stride = w.cols();
  gemm.b_stride = w.cols();
  gemm.c_stride = w.rows();
  gemm.b_transposed = true;
  gemm.c_f32 = y_type == CudaFloat::kF32;
  return gemm;
}

// dx's columns that `columns` has of `rows` rows of the weight.
GemmBf16 input_product(void* dx, bool f32, const uint16_t* dy, const uint16_t* columns, int64_t rows, int64_t col_count,
                       const WeightStack& w, int64_t T) {
  GemmBf16 gemm{};
  gemm.c = dx;
  gemm.a = dy;
  gemm.b = columns;
  gemm.M = T;
  gemm.N = col_count;
  gemm.K = rows;
  gemm.a_stride = w.rows();
  gemm.b_stride = col_count;
  gemm.c_stride = w.cols();
  gemm.c_f32 = f32;
  return gemm;
}

bool is_nvfp4(const WeightStack& w) {
  return std::all_of(w.begin(), w.end(), [](const WeightView& part) { return part.storage == Storage::kNvfp4; });
}

// How many tokens are cheaper from the packed weight, kGemvTokens at a time. The more rows, the better a matrix-vector
// product uses the memory, where cuBLASLt reads four times as many bytes that must be written before. H200: gate and up
// at 16 tokens 41 µs against 66, the head at 32 tokens 421 µs against 504.
int64_t gemv_tokens(const WeightStack& w) {
  const int64_t rows = w.rows();
  return rows >= (1 << 16) ? 4 * kGemvTokens : rows >= (1 << 13) ? 2 * kGemvTokens : kGemvTokens;
}

// False when there are too many tokens, or columns, for it.
bool linear_gemv(void* y, CudaFloat y_type, const uint16_t* x, const WeightStack& w, int64_t T, bool accumulate,
                 const LinearCuda& cuda) {
  if (T > (cuda.gemv_tokens > 0 ? cuda.gemv_tokens : gemv_tokens(w))) return false;
  if (!is_nvfp4(w) || !gemv_nvfp4_fits_cuda(w.cols())) return false;
  const int64_t y_bytes = y_type == CudaFloat::kF32 ? 4 : 2;
  for (int64_t t = 0; t < T; t += kGemvTokens) {
    GemvCudaArgs args{};
    auto* to = static_cast<uint8_t*>(y) + t * w.rows() * y_bytes;
    args.matrix_count = 0;
    for (const WeightView& part : w) {
      args.matrices[args.matrix_count++] = {to, part.rows, part.packed, part.residual, w.rows()};
      to += part.rows * y_bytes;
    }
    args.x = x + t * w.cols();
    args.T = std::min(kGemvTokens, T - t);
    args.K = w.cols();
    args.y_type = y_type;
    args.accumulate = accumulate;
    gemv_nvfp4_cuda(args, cuda.stream);
  }
  return true;
}

// False when there are too many tokens for it.
bool input_gemv(uint16_t* dx, const uint16_t* dy, const WeightStack& w, int64_t T, bool accumulate,
                const LinearCuda& cuda) {
  if (T > kGemvInputTokens || !is_nvfp4(w)) return false;
  if (cuda.scratch_bytes < gemv_backward_input_scratch_bytes(w.begin(), w.count(), T)) return false;
  GemvBackwardInputCuda args{.dx = dx, .weights = w.begin(), .weight_count = w.count(), .T = T};
  for (int i = 0; i < w.count(); ++i) {
    args.dy[i] = dy;
    args.dy_strides[i] = w.rows();
    dy += w.begin()[i].rows;
  }
  args.scratch = cuda.scratch;
  args.accumulate = accumulate;
  gemv_backward_input_cuda(args, cuda.stream);
  return true;
}

// Bytes in which the products of dx are added: none for one.
int64_t sum_bytes(const Terms& terms, int64_t T, int64_t K) { return terms.count > 1 ? T * K * 4 : 0; }

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t linear_cuda_scratch_bytes(const WeightStack& w, int64_t slice_bytes) {
  if (w.rows() * w.cols() == 0) return kCublasWorkspaceBytes;
  return kCublasWorkspaceBytes + row_slice_bytes(terms_of(w), slice_bytes);
}

int64_t linear_backward_input_cuda_scratch_bytes(const WeightStack& w, int64_t T, int64_t slice_bytes) {
  if (w.rows() * w.cols() == 0) return kCublasWorkspaceBytes;
  const Terms terms = terms_of(w);
  return kCublasWorkspaceBytes + align256(sum_bytes(terms, T, w.cols())) + col_slice_bytes(terms, slice_bytes);
}

int64_t linear_backward_weight_cuda_scratch_bytes() { return kCublasWorkspaceBytes; }

void linear_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightStack& w, int64_t T, bool accumulate,
                 const LinearCuda& cuda) {
  if (T * w.rows() == 0) return;
  if (w.cols() == 0) return clear(y, y_type, T * w.rows(), accumulate, cuda.stream);
  if (linear_gemv(y, y_type, x, w, T, accumulate, cuda)) return;
  if (T <= kGemvTokens && gemv_bnb4_takes(w.begin(), w.count())) {
    return gemv_bnb4_cuda({y, x, w.begin(), w.count(), T, y_type, accumulate}, cuda.stream);
  }
  const Terms terms = terms_of(w);
  const Scratch scratch = divide(cuda, 0, row_slice_bytes(terms, 0));
  for (const Term& term : terms) {
    const int64_t count = term.dense ? term.rows : slice_rows(term.rows, w.cols(), scratch.slice_bytes);
    for (int64_t begin = 0; begin < term.rows; begin += count) {
      const int64_t rows = std::min(count, term.rows - begin);
      if (!term.dense) decode(scratch.slice, term, begin, rows, 0, w.cols(), cuda.stream);
      void* columns = static_cast<uint8_t*>(y) + (term.first_row + begin) * (y_type == CudaFloat::kF32 ? 4 : 2);
      const uint16_t* decoded = term.dense ? term.dense : scratch.slice;
      GemmBf16 gemm = forward_product(columns, y_type, x, decoded, rows, w, T);
      gemm.alpha = term.alpha;
      gemm.add = accumulate || term.adds;
      cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
    }
  }
}

void linear_backward_input_cuda(uint16_t* dx, const uint16_t* dy, const WeightStack& w, int64_t T, bool accumulate,
                                const LinearCuda& cuda) {
  const int64_t K = w.cols(), elements = T * K;
  if (elements == 0) return;
  if (w.rows() == 0) return clear(dx, CudaFloat::kBF16, elements, accumulate, cuda.stream);
  if (input_gemv(dx, dy, w, T, accumulate, cuda)) return;
  const Terms terms = terms_of(w);
  const int64_t reserved = sum_bytes(terms, T, K);
  const Scratch scratch = divide(cuda, reserved, col_slice_bytes(terms, 0));
  const bool in_scratch = reserved > 0;
  uint8_t* out = in_scratch ? scratch.reserved : reinterpret_cast<uint8_t*>(dx);
  bool add = !in_scratch && accumulate;
  for (const Term& term : terms) {
    const int64_t count = term.dense ? K : slice_cols(term.rows, K, scratch.slice_bytes);
    for (int64_t begin = 0; begin < K; begin += count) {
      const int64_t cols = std::min(count, K - begin);
      if (!term.dense) decode(scratch.slice, term, 0, term.rows, begin, cols, cuda.stream);
      const uint16_t* decoded = term.dense ? term.dense : scratch.slice;
      GemmBf16 gemm = input_product(out + begin * (in_scratch ? 4 : 2), in_scratch, dy + term.first_row, decoded,
                                    term.rows, cols, w, T);
      gemm.alpha = term.alpha;
      gemm.add = add;
      cuda.blas.gemm_bf16(gemm, scratch.workspace, cuda.stream);
    }
    add = true;
  }
  if (!in_scratch) return;
  const auto grid = static_cast<unsigned>((elements / 4 + kThreads - 1) / kThreads);
  round_sum_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(cuda.stream)>>>(
      dx, reinterpret_cast<const float*>(scratch.reserved), elements, accumulate);
  QN_CUDA_CHECK(cudaGetLastError());
}

void linear_backward_weight_cuda(const LinearWeightGradientCuda& args, const LinearCuda& cuda) {
  const int64_t count = args.row_count * args.K;
  if (count == 0) return;
  if (args.T == 0) return clear(args.dw, args.dw_type, count, args.accumulate, cuda.stream);
  GemmBf16 gemm{};
  gemm.c = args.dw;
  gemm.a = args.dy + args.row_begin;
  gemm.b = args.x;
  gemm.M = args.row_count;
  gemm.N = args.K;
  gemm.K = args.T;
  gemm.a_stride = args.N;
  gemm.b_stride = args.K;
  gemm.c_stride = args.K;
  gemm.a_transposed = true;
  gemm.c_f32 = args.dw_type == CudaFloat::kF32;
  gemm.alpha = 1;
  gemm.add = args.accumulate;
  cuda.blas.gemm_bf16(gemm, divide(cuda, 0, 0).workspace, cuda.stream);
}

}  // namespace qn
