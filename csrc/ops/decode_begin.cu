#include "ops/decode_begin.h"

#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/async_cuda.h"
#include "ops/rope_table_cuda.h"
#include "ops/weight_eight_cuda.h"

namespace qn {

namespace {

constexpr int kThreads = 128;

// computes   position += 1; cos and sin of position · base^(−2i/D); x = w[id]
// moves      read H · (9/16 packed, 2 or 4 dense) B, write 2·H + 4·D B    bound: latency of f64 powers and sines
// launch     grid 1 + ceil(H / 1024), block 128, smem 0                   block 0 has the position, the others the row
// needs      H % 8 == 0 (packed: 16), rows 16-byte aligned
// numerics   those of rope_table_kernel and embedding_kernel
// measured   not yet
template <Storage storage>
__global__ void __launch_bounds__(kThreads) decode_begin_kernel(const DecodeBeginCuda a) {
  if (blockIdx.x > 0) {
    let_next_kernel_start();
    const int64_t h = (int64_t{blockIdx.x - 1} * kThreads + threadIdx.x) * kLaneValues;
    if (h < a.w.cols) store8(a.x + h, weight_eight<storage>(a.w, *a.ids * a.w.cols + h));
    return;
  }
  const int32_t position = *a.position + 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    *a.position = position;
    // Kernels after the next one read it before they wait for anything.
    __threadfence();
    let_next_kernel_start();
  }
  for (int64_t i = threadIdx.x; i < a.D / 2; i += kThreads) {
    store_rope(a.cosines + i, a.sines + i, position, rope_frequency(i, a.D, static_cast<float>(a.rope_base)));
  }
}

template <Storage storage>
void launch(const DecodeBeginCuda& args, CudaStream stream) {
  constexpr int64_t kColumns = int64_t{kThreads} * kLaneValues;
  const auto blocks = static_cast<unsigned>(1 + (args.w.cols + kColumns - 1) / kColumns);
  decode_begin_kernel<storage><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void decode_begin_cuda(const DecodeBeginCuda& args, CudaStream stream) {
  if (args.w.cols % kLaneValues != 0) {
    fail(Code::kUnsupported, "An embedding on CUDA needs a multiple of 8 columns, not %lld",
         static_cast<long long>(args.w.cols));
  }
  switch (args.w.storage) {
    case Storage::kNvfp4:
      return launch<Storage::kNvfp4>(args, stream);
    case Storage::kBnb4:
      return launch<Storage::kBnb4>(args, stream);
    case Storage::kF32:
      return launch<Storage::kF32>(args, stream);
    case Storage::kF16:
      return launch<Storage::kF16>(args, stream);
    case Storage::kBF16:
      return launch<Storage::kBF16>(args, stream);
  }
}

}  // namespace qn
