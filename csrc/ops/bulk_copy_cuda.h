// Copies from global to shared memory by the copy engine, and the barriers in shared memory that count their bytes.
// From compute capability 9.0 on; elsewhere nothing may call them. For .cu files alone.
#pragma once

#include <cstdint>

#include "ops/async_cuda.h"

namespace qn {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A phase of a barrier ends when `arrivals` threads have arrived and all bytes that they expect have. Visible to others
// after publish_barriers() and a barrier of the block.
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity has ended; the first has parity 0.
__device__ __forceinline__ void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred ended;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A multiple of 16 bytes, aligned to 16 on both sides; they count at the barrier.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// A barrier of kThreads threads of the block, whole warps; 0 is that of __syncthreads().
template <int kThreads>
__device__ __forceinline__ void sync_threads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

#endif

}  // namespace qn
