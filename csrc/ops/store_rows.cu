// store_rows_cuda and load_rows_cuda of ops/adamw.h.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/adamw_blocks_cuda.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

// Words of elements [element, element + 16), element a multiple of 16.
__device__ void block_words(uint32_t* words, const StoreRowsArgs& args, int64_t element) {
  const auto tag = static_cast<uint32_t>(RandomStream::kGradient) << 24;
  for (int q = 0; q < 4; ++q) {
    const auto quad = static_cast<uint64_t>(element / 4 + q);
    const PhiloxWords w = philox4x32<10>(static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) | tag,
                                         args.parameter, args.step, args.seed);
    for (int k = 0; k < 4; ++k) words[4 * q + k] = w.w[k];
  }
}

__device__ float largest_of(const float* x) {
  float largest = 0;
  QN_EACH_OF(16) largest = larger(largest, magnitude_of(x[i]));
  return largest;
}

// The largest magnitude of a row, in every thread.
__device__ float row_amax(const float* x, int64_t K) {
  __shared__ uint32_t largest;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  uint32_t own = 0;
  for (int64_t i = threadIdx.x; i < K; i += kThreads) own = max(own, bits_of(x[i]) & 0x7fffffffu);
  atomicMax(&largest, own);
  __syncthreads();
  return float_of(largest);
}

// computes   the stored form of x, rounded stochastically
// moves      read 4 B (packed: twice, the second time from L2), write .5625, 1.0625, 2 or 4 B an element  bound: memory
// launch     grid rows, block 256, smem 4 B                              one row a block, 16 columns a thread
// needs      K % 16 == 0, x 16-byte aligned
// numerics   the bytes of store_rows_cpu; the integer maximum is the same in any order
// measured   not yet
template <MomentFormat kFormat>
__global__ void __launch_bounds__(kThreads) store_rows_kernel(StoreRowsArgs args, const float* rows) {
  const int64_t row = args.row_begin + blockIdx.x, K = args.K;
  const float* x = rows + int64_t{blockIdx.x} * K;
  constexpr bool kScaled = kFormat == MomentFormat::kNvfp4 || kFormat == MomentFormat::kInt8;
  const float largest = largest_code(kFormat);
  float level = 1;
  if constexpr (kScaled) {
    level = linear_level(row_amax(x, K), largest);
    if (threadIdx.x == 0) args.view.rows[row] = level;
  }
  for (int64_t column = int64_t{threadIdx.x} * 16; column < K; column += kThreads * 16) {
    const int64_t at = row * K + column;
    float values[16];
    load_f32(values, x + column);
    if constexpr (kFormat == MomentFormat::kFp32) {
      store_f32(static_cast<float*>(args.view.values) + at, values);
    } else {
      uint32_t words[16];
      block_words(words, args, at);
      if constexpr (kFormat == MomentFormat::kBf16) {
        uint32_t bits[16];
        QN_EACH_OF(16) bits[i] = stochastic_bf16(values[i], words[i]);
        store_u16(static_cast<uint16_t*>(args.view.values) + at, bits);
      } else {
        PackedBlock<kFormat> block{};
        block.scale = static_cast<uint8_t>(linear_scale(largest_of(values), largest, level));
        const float divisor = divisor_of(e4m3_value(block.scale) * level);
        QN_EACH_OF(16) {
          if constexpr (kFormat == MomentFormat::kNvfp4) {
            block.put(i, linear_e2m1(values[i], divisor, words[i]));
          } else {
            block.put(i, static_cast<uint8_t>(linear_int8(values[i], divisor, words[i])));
          }
        }
        store_packed<kFormat>(args.view.values, args.view.scales, at, block);
      }
    }
  }
}

// computes   x of the stored form
// moves      read .5625, 1.0625, 2 or 4 B, write 4 B an element          bound: memory
// launch     grid rows, block 256, smem 0                                one row a block, 16 columns a thread
// needs      as above
// numerics   the bytes of load_rows_cpu
// measured   not yet
template <MomentFormat kFormat>
__global__ void __launch_bounds__(kThreads) load_rows_kernel(float* rows, StoreRowsArgs args) {
  const int64_t row = args.row_begin + blockIdx.x, K = args.K;
  float* x = rows + int64_t{blockIdx.x} * K;
  for (int64_t column = int64_t{threadIdx.x} * 16; column < K; column += kThreads * 16) {
    const int64_t at = row * K + column;
    float values[16];
    if constexpr (kFormat == MomentFormat::kFp32) {
      load_f32(values, static_cast<const float*>(args.view.values) + at);
    } else if constexpr (kFormat == MomentFormat::kBf16) {
      load_bf16(values, static_cast<const uint16_t*>(args.view.values) + at);
    } else {
      const PackedBlock<kFormat> block = load_packed<kFormat>(args.view.values, args.view.scales, at);
      const float S = e4m3_value(block.scale) * args.view.rows[row];
      QN_EACH_OF(16) values[i] = block.value(i) * S;
    }
    store_f32(x + column, values);
  }
}

// --------------------------------------------------------------------------------------------------------------------

void check(const StoreRowsArgs& args) {
  if (args.K % 16 == 0) return;
  fail(Code::kInternal, "rows of %lld columns are kept in f32 on CUDA", static_cast<long long>(args.K));
}

template <MomentFormat kFormat>
void store(const StoreRowsArgs& args, const float* x, cudaStream_t stream) {
  store_rows_kernel<kFormat><<<static_cast<unsigned>(args.row_count), kThreads, 0, stream>>>(args, x);
}

template <MomentFormat kFormat>
void load(float* x, const StoreRowsArgs& args, cudaStream_t stream) {
  load_rows_kernel<kFormat><<<static_cast<unsigned>(args.row_count), kThreads, 0, stream>>>(x, args);
}

}  // namespace

void store_rows_cuda(const StoreRowsArgs& args, const float* x, CudaStream stream) {
  check(args);
  if (args.row_count == 0) return;
  const auto launch = args.format == MomentFormat::kNvfp4  ? store<MomentFormat::kNvfp4>
                      : args.format == MomentFormat::kInt8 ? store<MomentFormat::kInt8>
                      : args.format == MomentFormat::kBf16 ? store<MomentFormat::kBf16>
                                                           : store<MomentFormat::kFp32>;
  launch(args, x, static_cast<cudaStream_t>(stream));
  QN_CUDA_CHECK(cudaGetLastError());
}

void load_rows_cuda(float* x, const StoreRowsArgs& args, CudaStream stream) {
  check(args);
  if (args.row_count == 0) return;
  const auto launch = args.format == MomentFormat::kNvfp4  ? load<MomentFormat::kNvfp4>
                      : args.format == MomentFormat::kInt8 ? load<MomentFormat::kInt8>
                      : args.format == MomentFormat::kBf16 ? load<MomentFormat::kBf16>
                                                           : load<MomentFormat::kFp32>;
  launch(x, args, static_cast<cudaStream_t>(stream));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
