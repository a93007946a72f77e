// Matrix products by NVIDIA's cuBLASLt, opened at run time so that the addon loads without it. Needs no CUDA header and
// compiles without CUDA. Everything is row-major here; cuBLASLt's column-major view of it stays inside.
//
//   gemm_bf16      c[M, N] = alpha · op(a) · op(b) (+ c)  bf16 operands, f32 sums, bf16 or f32 result
//   matmul_nvfp4   c[M, N] = alpha · a · bᵀ + beta · c    NVFP4 operands, f32 sums, bf16 or f32 result; Blackwell only
//
// Two runs on one device with the same workspace size give equal bytes: the algorithm is chosen once per shape, and
// those that add partial sums in a changing order are not allowed.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/cuda_device.h"

namespace qn {

// Device memory for one product at a time, 256-byte aligned. 32 MiB is what NVIDIA advises for Hopper.
struct CublasWorkspace {
  void* data = nullptr;
  int64_t bytes = 0;
};
constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;

struct GemmBf16 {
  void* c;            // out (in too with add) bf16 or f32 [M, N], rows c_stride apart
  const uint16_t* a;  // in bf16[M, K], or [K, M] when a_transposed
  const uint16_t* b;  // in bf16[K, N], or [N, K] when b_transposed
  int64_t M, N, K;
  int64_t a_stride, b_stride, c_stride;  // elements between stored rows
  bool a_transposed = false, b_transposed = false;
  bool c_f32 = false;
  float alpha = 1;
  bool add = false;  // adds to c instead of overwriting whatever it holds
};

// Codes row-major, scales in the 128x4 swizzle of to_blocked_scales() (format/nvfp4.h). K % 32 == 0, N % 16 == 0.
struct MatmulNvfp4 {
  void* c;                  // out (in too unless beta is 0) bf16 or f32 [M, N]
  const uint8_t* a_codes;   // in u8[M, K/2], 16-byte aligned
  const uint8_t* a_scales;  // in blocked e4m3 of [M, K/16]
  const uint8_t* b_codes;   // in u8[N, K/2], 16-byte aligned
  const uint8_t* b_scales;  // in blocked e4m3 of [N, K/16]
  int64_t M, N, K;
  bool c_f32;
  const float* alpha;  // in f32 on the device: the product of both global scales
  const float* beta;   // in f32 on the device: 0 overwrites whatever c holds, 1 adds to it
};

// One handle, for the device that is current at construction; calls may come from any thread, one product at a time
// per workspace.
class CublasLt {
 public:
  // Error(kCudaUnavailable) without a device or library (names every file tried), kCudaFailure when cuBLASLt refuses.
  // QN_CUBLASLT, when set, is the only file tried.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Nothing is allocated on the device and nothing waits. M, N or K = 0 does nothing. Error(kUnsupported) when
  // cuBLASLt has no algorithm for the shape and workspace.
  void gemm_bf16(const GemmBf16& gemm, CublasWorkspace workspace, CudaStream stream);
  // Not yet run on hardware that has it. Error(kUnsupported) elsewhere.
  void matmul_nvfp4(const MatmulNvfp4& matmul, CublasWorkspace workspace, CudaStream stream);

  int64_t version() const;  // as 130000 for 13.0.0

 private:
  struct Plan;  // descriptors and the chosen algorithm of one shape
  using Key = std::vector<int64_t>;

  const Plan& plan_bf16(const GemmBf16& gemm, int64_t workspace_bytes);
  const Plan& plan_nvfp4(const MatmulNvfp4& matmul, int64_t workspace_bytes);  // mutex_ is held

  void* handle_ = nullptr;
  std::mutex mutex_;  // of plans_; a plan never changes once made, but for the places of NVFP4 scales
  std::map<Key, Plan> plans_;
};

}  // namespace qn
