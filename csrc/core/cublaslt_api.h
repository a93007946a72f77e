// What we use of cuBLASLt, declared from NVIDIA's public documentation of the library, and the library itself, opened
// at run time. Handles and descriptors are pointers to types only the library knows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qn::cublaslt {

using Status = int;  // 0 is success
constexpr Status kNotSupported = 15;

// cudaDataType_t
constexpr int kR32F = 0, kR16BF = 14, kR4FE2M1 = 33;
// cublasComputeType_t
constexpr int kCompute32F = 68;
// cublasOperation_t
constexpr int32_t kOpN = 0, kOpT = 1;
// cublasLtMatmulDescAttributes_t
constexpr int kDescPointerMode = 2, kDescTransA = 3, kDescTransB = 4, kDescAScalePointer = 17, kDescBScalePointer = 18;
constexpr int kDescAScaleMode = 31, kDescBScaleMode = 32;
// cublasLtPointerMode_t: alpha and beta are both on the device
constexpr int32_t kPointerModeDevice = 1;
// cublasLtMatmulMatrixScale_t: one UE4M3 scale per 16 elements of the depth
constexpr int32_t kScaleVec16Ue4m3 = 1;
// cublasLtMatmulPreferenceAttributes_t
constexpr int kPreferenceMaxWorkspace = 1, kPreferenceReductionMask = 3;
constexpr int kPreferenceAlignmentA = 5, kPreferenceAlignmentB = 6, kPreferenceAlignmentC = 7,
              kPreferenceAlignmentD = 8;
// cublasLtReductionScheme_t: partial sums of a split depth in the workspace, in f32, added in a fixed order
constexpr uint32_t kReductionComputeType = 2;

struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96, "cublasLtMatmulHeuristicResult_t");

struct Api {
  Status (*Create)(void** handle);
  Status (*Destroy)(void* handle);
  size_t (*GetVersion)();
  const char* (*GetStatusName)(Status status);
  Status (*MatmulDescCreate)(void** desc, int compute_type, int scale_type);
  Status (*MatmulDescDestroy)(void* desc);
  Status (*MatmulDescSetAttribute)(void* desc, int attribute, const void* value, size_t bytes);
  Status (*MatrixLayoutCreate)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride);
  Status (*MatrixLayoutDestroy)(void* layout);
  Status (*MatmulPreferenceCreate)(void** preference);
  Status (*MatmulPreferenceDestroy)(void* preference);
  Status (*MatmulPreferenceSetAttribute)(void* preference, int attribute, const void* value, size_t bytes);
  Status (*MatmulAlgoGetHeuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                                   int requested, HeuristicResult* results, int* returned);
  Status (*Matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream);
};

// Opened at the first call and kept until the process ends. Error(kCudaUnavailable) names what was tried, and why each
// failed; a later call tries again.
const Api& api();

// Error(kUnsupported) for kNotSupported, Error(kCudaFailure) for any other failure, with the call and the status' name.
void check(Status status, const char* call);

}  // namespace qn::cublaslt
