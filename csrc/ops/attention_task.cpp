#include "ops/attention_task.h"

#include <cmath>
#include <cstring>

namespace qn {

const AttentionKernels& attention_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return attention_kernels_avx512();
  if (isa == Isa::kAvx2) return attention_kernels_avx2();
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return attention_kernels_neon();
#endif
  return attention_kernels_portable();
}

void check_attention_shape(const AttentionShape& shape) {
  const auto& [B, T, Q, KV, D] = shape;
  if (B < 0 || T < 0 || KV < 1 || Q < KV || Q % KV != 0) {
    fail(Code::kInvalidArgument, "Expected query heads in multiples of key heads but received Q %lld, KV %lld",
         (long long)Q, (long long)KV);
  }
  if (D < 1 || D > kMaxHeadDim) {
    fail(Code::kInvalidArgument, "Expected a head dim of 1 to %lld but received %lld", (long long)kMaxHeadDim,
         (long long)D);
  }
}

void check_segments(const int32_t* starts, int64_t B, int64_t T) {
  for (int64_t i = 0; starts && i < B * T; ++i) {
    const int64_t t = i % T;
    if (starts[i] == t || (t > 0 && starts[i] == starts[i - 1])) continue;
    fail(Code::kInvalidArgument,
         "Expected a token's own position or the start before it for starts[%lld] but received %d", (long long)i,
         starts[i]);
  }
}

void pack_queries(float* to, const float* x, const QueryRows& rows, int64_t Q, int64_t D) {
  const int64_t stride = padded(D);
  for (int64_t r = 0; r < rows.count(); ++r) {
    std::memcpy(to + r * stride, x + rows.index(r, Q) * D, sizeof(float) * D);
    std::memset(to + r * stride + D, 0, sizeof(float) * (stride - D));
  }
}

void pack_keys(const AttentionKernels& kernels, float* to, const KeyPages& keys, const void* const* pages, int64_t kv,
               int64_t begin, int64_t count, int64_t D) {
  const int64_t stride = padded(D);
  keys.each_run(pages, kv, begin, count, [&](const void* from, int64_t at, int64_t run) {
    const int64_t bytes = keys.token_stride * dtype_bytes(keys.dtype);
    for (int64_t i = 0; i < run; ++i) {
      float* row = to + (at + i) * stride;
      if (keys.hidden(begin + at + i)) {
        std::memset(row, 0, sizeof(float) * stride);
        continue;
      }
      const void* token = static_cast<const char*>(from) + i * bytes;
      if (keys.dtype == DType::kF32) {
        std::memcpy(row, token, sizeof(float) * D);
      } else {
        kernels.widen(row, token, keys.dtype, D);
      }
      std::memset(row + D, 0, sizeof(float) * (stride - D));
    }
  });
  std::memset(to + count * stride, 0, sizeof(float) * (padded(count) - count) * stride);
}

void hide_keys(float* s, const QueryRows& rows, const KeyPages& keys, int64_t offset, int64_t begin, int64_t count) {
  const int64_t columns = padded(count);
  const bool any_hidden = keys.mask && std::memchr(keys.mask + keys.first + begin, 0, count) != nullptr;
  for (int64_t r = 0; r < rows.count(); ++r) {
    float* row = s + r * kKeyTile;
    const int64_t visible = std::clamp<int64_t>(offset + rows.token(r) + 1 - begin, 0, count);
    for (int64_t i = visible; i < columns; ++i) row[i] = -INFINITY;
    if (!any_hidden) continue;
    for (int64_t i = 0; i < visible; ++i) {
      if (keys.hidden(begin + i)) row[i] = -INFINITY;
    }
  }
}

}  // namespace qn
