#include "core/cublaslt.h"

#include <algorithm>
#include <cstdlib>

#ifdef QN_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "core/cublaslt_api.h"
#include "core/cuda_check.h"
#include "core/status.h"

namespace qn {

using cublaslt::api;
using cublaslt::check;

#define QN_LT_CHECK(call) check(call, #call)

namespace {

// A descriptor that is destroyed with its plan, also when making the plan throws half way.
class Descriptor {
 public:
  using Destroy = cublaslt::Status (*)(void*);
  explicit Descriptor(Destroy destroy) : destroy_(destroy) {}
  ~Descriptor() {
    if (value_) destroy_(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  void** out() { return &value_; }
  void* get() const { return value_; }

 private:
  Destroy destroy_;
  void* value_ = nullptr;
};

template <typename T>
void set(const Descriptor& desc, int attribute, T value) {
  QN_LT_CHECK(api().MatmulDescSetAttribute(desc.get(), attribute, &value, sizeof(value)));
}

template <typename T>
void prefer(const Descriptor& preference, int attribute, T value) {
  QN_LT_CHECK(api().MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)));
}

// What cuBLASLt may assume of a pointer: its alignment in bytes, at most 256.
int64_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return static_cast<int64_t>(std::min<uintptr_t>(address & (~address + 1), 256) + (address == 0 ? 256 : 0));
}

struct Alignments {
  int64_t a, b, c;
};

// compute-sanitizer's initcheck does not see what cuBLASLt's Hopper kernels store in bulk and reports every read of it.
// With QN_CLEAR_PRODUCTS, which scripts/sanitize-gpu.sh sets, a product clears its result and workspace first, so that
// what is still reported is a mistake.
bool clear_products() {
  static const bool asked = std::getenv("QN_CLEAR_PRODUCTS") != nullptr;
  return asked;
}

void clear([[maybe_unused]] const GemmBf16& gemm, [[maybe_unused]] CublasWorkspace workspace,
           [[maybe_unused]] CudaStream stream) {
#ifdef QN_WITH_CUDA
  const size_t element = gemm.c_f32 ? 4 : 2;
  const auto on = static_cast<cudaStream_t>(stream);
  QN_CUDA_CHECK(cudaMemset2DAsync(gemm.c, static_cast<size_t>(gemm.c_stride) * element, 0,
                                  static_cast<size_t>(gemm.N) * element, static_cast<size_t>(gemm.M), on));
  QN_CUDA_CHECK(cudaMemsetAsync(workspace.data, 0, static_cast<size_t>(workspace.bytes), on));
#endif
}

}  // namespace

// cuBLASLt's A, B and C are column-major, so its A is our b, its B our a, and its C our c, each transposed.
struct CublasLt::Plan {
  Descriptor desc{api().MatmulDescDestroy};
  Descriptor a{api().MatrixLayoutDestroy}, b{api().MatrixLayoutDestroy}, c{api().MatrixLayoutDestroy};
  cublaslt::Algorithm algorithm{};

  void point_at_scales(const MatmulNvfp4& matmul) const {
    set(desc, cublaslt::kDescAScalePointer, matmul.b_scales);
    set(desc, cublaslt::kDescBScalePointer, matmul.a_scales);
  }

  void choose(void* handle, int64_t workspace_bytes, const Alignments& align, const std::string& what) {
    Descriptor preference(api().MatmulPreferenceDestroy);
    QN_LT_CHECK(api().MatmulPreferenceCreate(preference.out()));
    prefer(preference, cublaslt::kPreferenceMaxWorkspace, static_cast<uint64_t>(workspace_bytes));
    prefer(preference, cublaslt::kPreferenceReductionMask, cublaslt::kReductionComputeType);
    prefer(preference, cublaslt::kPreferenceAlignmentA, static_cast<uint32_t>(align.a));
    prefer(preference, cublaslt::kPreferenceAlignmentB, static_cast<uint32_t>(align.b));
    prefer(preference, cublaslt::kPreferenceAlignmentC, static_cast<uint32_t>(align.c));
    prefer(preference, cublaslt::kPreferenceAlignmentD, static_cast<uint32_t>(align.c));
    cublaslt::HeuristicResult best{};
    int found = 0;
    const cublaslt::Status status = api().MatmulAlgoGetHeuristic(handle, desc.get(), a.get(), b.get(), c.get(), c.get(),
                                                                 preference.get(), 1, &best, &found);
    if (status == cublaslt::kNotSupported || (status == 0 && (found == 0 || best.state != 0))) {
      fail(Code::kUnsupported, "cuBLASLt %zu has no algorithm on this device for %s with %lld bytes of workspace",
           api().GetVersion(), what.c_str(), static_cast<long long>(workspace_bytes));
    }
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    algorithm = best.algorithm;
  }
};

CublasLt::CublasLt() {
  require_cuda();
  QN_LT_CHECK(api().Create(&handle_));
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (handle_) api().Destroy(handle_);
}

int64_t CublasLt::version() const { return static_cast<int64_t>(api().GetVersion()); }

const CublasLt::Plan& CublasLt::plan_bf16(const GemmBf16& gemm, int64_t workspace_bytes) {
  const Alignments align{alignment(gemm.b), alignment(gemm.a), alignment(gemm.c)};
  const Key key{0,       gemm.M,  gemm.N,  gemm.K,     gemm.a_stride,     gemm.b_stride,     gemm.c_stride,
                align.a, align.b, align.c, gemm.c_f32, gemm.a_transposed, gemm.b_transposed, workspace_bytes};
  std::lock_guard lock(mutex_);
  if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
  Plan& plan = plans_[key];
  try {
    const int c_type = gemm.c_f32 ? cublaslt::kR32F : cublaslt::kR16BF;
    QN_LT_CHECK(api().MatmulDescCreate(plan.desc.out(), cublaslt::kCompute32F, cublaslt::kR32F));
    set(plan.desc, cublaslt::kDescTransA, gemm.b_transposed ? cublaslt::kOpT : cublaslt::kOpN);
    set(plan.desc, cublaslt::kDescTransB, gemm.a_transposed ? cublaslt::kOpT : cublaslt::kOpN);
    const auto layout = [](Descriptor& out, int type, int64_t stored_rows, int64_t stored_cols, int64_t stride) {
      QN_LT_CHECK(api().MatrixLayoutCreate(out.out(), type, static_cast<uint64_t>(stored_cols),
                                           static_cast<uint64_t>(stored_rows), stride));
    };
    layout(plan.a, cublaslt::kR16BF, gemm.b_transposed ? gemm.N : gemm.K, gemm.b_transposed ? gemm.K : gemm.N,
           gemm.b_stride);
    layout(plan.b, cublaslt::kR16BF, gemm.a_transposed ? gemm.K : gemm.M, gemm.a_transposed ? gemm.M : gemm.K,
           gemm.a_stride);
    layout(plan.c, c_type, gemm.M, gemm.N, gemm.c_stride);
    plan.choose(handle_, workspace_bytes, align,
                "a bf16 product [" + std::to_string(gemm.M) + ", " + std::to_string(gemm.N) + "] over " +
                    std::to_string(gemm.K));
  } catch (...) {
    plans_.erase(key);
    throw;
  }
  return plan;
}

void CublasLt::gemm_bf16(const GemmBf16& gemm, CublasWorkspace workspace, CudaStream stream) {
  if (gemm.M * gemm.N * gemm.K == 0) return;
  const Plan& plan = plan_bf16(gemm, workspace.bytes);
  if (clear_products() && !gemm.add) clear(gemm, workspace, stream);
  const float beta = gemm.add ? 1.0f : 0.0f;
  QN_LT_CHECK(api().Matmul(handle_, plan.desc.get(), &gemm.alpha, gemm.b, plan.a.get(), gemm.a, plan.b.get(), &beta,
                           gemm.c, plan.c.get(), gemm.c, plan.c.get(), &plan.algorithm, workspace.data,
                           static_cast<size_t>(workspace.bytes), stream));
}

const CublasLt::Plan& CublasLt::plan_nvfp4(const MatmulNvfp4& matmul, int64_t workspace_bytes) {
  const Alignments align{alignment(matmul.b_codes), alignment(matmul.a_codes), alignment(matmul.c)};
  const Key key{1, matmul.M, matmul.N, matmul.K, align.a, align.b, align.c, matmul.c_f32, workspace_bytes};
  if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
  Plan& plan = plans_[key];
  try {
    QN_LT_CHECK(api().MatmulDescCreate(plan.desc.out(), cublaslt::kCompute32F, cublaslt::kR32F));
    set(plan.desc, cublaslt::kDescPointerMode, cublaslt::kPointerModeDevice);
    // The only form there is: both operands with the depth contiguous.
    set(plan.desc, cublaslt::kDescTransA, cublaslt::kOpT);
    set(plan.desc, cublaslt::kDescTransB, cublaslt::kOpN);
    set(plan.desc, cublaslt::kDescAScaleMode, cublaslt::kScaleVec16Ue4m3);
    set(plan.desc, cublaslt::kDescBScaleMode, cublaslt::kScaleVec16Ue4m3);
    plan.point_at_scales(matmul);
    const auto depth = static_cast<uint64_t>(matmul.K);
    const auto rows = static_cast<uint64_t>(matmul.N), cols = static_cast<uint64_t>(matmul.M);
    QN_LT_CHECK(api().MatrixLayoutCreate(plan.a.out(), cublaslt::kR4FE2M1, depth, rows, matmul.K));
    QN_LT_CHECK(api().MatrixLayoutCreate(plan.b.out(), cublaslt::kR4FE2M1, depth, cols, matmul.K));
    const int c_type = matmul.c_f32 ? cublaslt::kR32F : cublaslt::kR16BF;
    QN_LT_CHECK(api().MatrixLayoutCreate(plan.c.out(), c_type, rows, cols, matmul.N));
    plan.choose(handle_, workspace_bytes, align,
                "an NVFP4 product [" + std::to_string(matmul.M) + ", " + std::to_string(matmul.N) + "] over " +
                    std::to_string(matmul.K) + " (Blackwell alone has it)");
  } catch (...) {
    plans_.erase(key);
    throw;
  }
  return plan;
}

void CublasLt::matmul_nvfp4(const MatmulNvfp4& matmul, CublasWorkspace workspace, CudaStream stream) {
  if (matmul.M * matmul.N * matmul.K == 0) return;
  std::lock_guard lock(mutex_);  // to the end: nobody else may move the plan's scales before the call has read them
  const Plan& plan = plan_nvfp4(matmul, workspace.bytes);
  plan.point_at_scales(matmul);
  QN_LT_CHECK(api().Matmul(handle_, plan.desc.get(), matmul.alpha, matmul.b_codes, plan.a.get(), matmul.a_codes,
                           plan.b.get(), matmul.beta, matmul.c, plan.c.get(), matmul.c, plan.c.get(), &plan.algorithm,
                           workspace.data, static_cast<size_t>(workspace.bytes), stream));
}

}  // namespace qn
