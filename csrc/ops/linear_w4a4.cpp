#include "ops/linear_w4a4.h"

#include "core/status.h"
#include "format/nvfp4.h"

namespace qn {

namespace {
int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }
}  // namespace

void require_w4a4_shape(const char* name, int64_t N, int64_t K) {
  if (N % 16 == 0 && K % 32 == 0) return;
  fail(Code::kUnsupported,
       "compute 'w4a4' needs weights [N, K] with N a multiple of 16 and K of 32, and %s is [%lld, %lld]; use 'w4a16'",
       name, static_cast<long long>(N), static_cast<long long>(K));
}

// In the order of linear_w4a4_cuda().
int64_t linear_w4a4_scratch_bytes(int64_t N, int64_t K, int64_t T) {
  const int64_t scales = K / kBlockSize;
  return kCublasWorkspaceBytes + 256 + align256(T * K / 2) + align256(T * scales) + blocked_scales_bytes(T, scales) +
         blocked_scales_bytes(N, scales);
}

}  // namespace qn
