// How code that calls the CUDA runtime reports failure. Needs no CUDA header.
#pragma once

namespace qn {

// Clears the error that the runtime would otherwise hand to the next call too, then throws Error(kCudaFailure), or
// Error(kOutOfMemory) for a failed allocation, with the call and the runtime's own words.
[[noreturn]] void cuda_fail(int status, const char* call, const char* file, int line);

}  // namespace qn

// QN_CUDA_CHECK(cudaMemcpyAsync(...)); after a launch: QN_CUDA_CHECK(cudaGetLastError()).
#define QN_CUDA_CHECK(call)                                                                                     \
  do {                                                                                                          \
    if (const auto qn_status = (call)) ::qn::cuda_fail(static_cast<int>(qn_status), #call, __FILE__, __LINE__); \
  } while (0)
