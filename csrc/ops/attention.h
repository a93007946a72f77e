// Causal grouped-query attention: y[t, q] = Σ_s softmax_s(q·k_s / √D) v_s over the keys s that t may see.
// Query head h reads key/value head h / (Q / KV). The score matrix is never stored; softmax is f32 with the row's
// maximum subtracted.
//
// attention: B sequences of T tokens, no cache.
//   y    out f32[B, T, Q, D]     lse out f32[B, T, Q] log-sum-exp of the scaled scores (may be null)
//   q    in  f32[B, T, Q, D]     k, v in f32[B, T, KV, D]
//   mask in  u8[B, T] or null: a key with 0 is seen by nobody. A query that sees no key gives zeros and lse = −inf.
//   starts in i32[B, T] or null: where the segment of each token begins in its sequence, see check_segments(). A query
//            sees no key before its segment. The CPU gives a segment the bytes that it has as a sequence of its own;
//            CUDA reads no tile of keys (or queries) that lies outside, and sums in tiles counted from the sequence.
//
// attention_backward: recomputes the scores from lse.
//   dq, dk, dv  out f32, shapes of q, k, v; overwritten. dy, y in f32[B, T, Q, D].
// Until a row's dq is written its first element holds Σ dy·y, so dq must alias nothing.
//
// Deterministic on any number of threads: every sum runs in one task, in ascending order of keys (y, dq) or of queries
// and of their heads (dk, dv); attention_cached merges splits whose size follows from the shape. Hidden keys are not
// read. Limits: D 1 .. 512, Q a multiple of KV. Scratch: kWorkerScratchBytes of each worker, nothing else.
//
// attention_cached: T new queries at positions offset .. offset+T−1 over a paged cache that already holds their keys.
// Query t sees cache positions 0 .. offset+t. Pages hold `page_tokens` positions each, k and v as [KV, page_tokens, D]
// in f32, f16 or bf16 (dtype), in ascending order; ceil((offset+T)/page_tokens) pages are read.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"
#include "core/dtype.h"

namespace qn {

struct AttentionShape {
  int64_t B, T, Q, KV, D;
};

// Error(kInvalidArgument) unless starts[b, 0] is 0 and every other starts[b, t] is t or starts[b, t − 1].
void check_segments(const int32_t* starts, int64_t B, int64_t T);

struct AttentionForward {
  float* y;
  float* lse;
  const float* q;
  const float* k;
  const float* v;
  const uint8_t* mask;
  const int32_t* starts;
  AttentionShape shape;
};
void attention_cpu(const AttentionForward& args, const Cpu& cpu);

struct AttentionBackward {
  // out
  float* dq;
  float* dk;
  float* dv;
  // in
  const float* dy;
  const float* y;
  const float* lse;
  const float* q;
  const float* k;
  const float* v;
  const uint8_t* mask;
  const int32_t* starts;
  AttentionShape shape;
};
void attention_backward_cpu(const AttentionBackward& args, const Cpu& cpu);

struct AttentionCached {
  float* y;                    // out f32[T, Q, D]
  const float* q;              // in f32[T, Q, D]
  const void* const* k_pages;  // pages of this layer
  const void* const* v_pages;
  DType dtype;  // kF32, kF16 or kBF16
  int64_t page_tokens;
  int64_t T, offset;
  int64_t Q, KV, D;
};
void attention_cached_cpu(const AttentionCached& args, const Cpu& cpu);

// On CUDA every f32 tensor above but lse is bf16, D is at most 256, all pointers are on the device and 16-byte aligned
// (mask, starts: any). Products and sums are f32; probabilities and their gradients round to bf16 before they enter a
// product, results once more at the store. Deterministic as above, with other sums than the CPU's. Fast where D is 64
// or 128.
struct AttentionForwardCuda {
  uint16_t* y;  // out bf16[B, T, Q, D]
  float* lse;   // out f32[B, T, Q] or null
  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  const uint8_t* mask;
  const int32_t* starts;
  AttentionShape shape;
};
void attention_cuda(const AttentionForwardCuda& args, CudaStream stream);

struct AttentionBackwardCuda {
  // out bf16
  uint16_t* dq;
  uint16_t* dk;
  uint16_t* dv;
  // in
  const uint16_t* dy;
  const uint16_t* y;
  const float* lse;
  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  const uint8_t* mask;
  const int32_t* starts;
  float* scratch;  // attention_backward_scratch_bytes(shape)
  AttentionShape shape;
};
int64_t attention_backward_scratch_bytes(const AttentionShape& shape);
void attention_backward_cuda(const AttentionBackwardCuda& args, CudaStream stream);

// attention_cached for 1 to 8 tokens over bf16 pages. The context is cut into splits of a fixed number of keys, so that
// a result depends on nothing but the context, and merged in an order that never changes.
struct AttentionDecodeCuda {
  uint16_t* y;                     // out bf16[T, Q, D]
  const uint16_t* q;               // in bf16[T, Q, D]
  const uint16_t* const* k_pages;  // device array of pages of this layer, bf16[KV, page_tokens, D] each
  const uint16_t* const* v_pages;
  float* scratch;  // attention_decode_scratch_bytes(args)
  // The first query's position. Where `position` is not null it is read there, on the device, when the kernels run (so
  // that a captured graph serves every step), is at most `offset`, and `offset` only sizes the launch and the scratch.
  int64_t offset;
  const int32_t* position;
  int64_t page_tokens;
  int64_t T;
  int64_t Q, KV, D;
};
int64_t attention_decode_scratch_bytes(const AttentionDecodeCuda& args);
void attention_decode_cuda(const AttentionDecodeCuda& args, CudaStream stream);

// attention_cached for any number of tokens over bf16 pages: what attention_cuda computes, with its tiles of keys in
// pages. Fast where page_tokens is a multiple of 64, too. Where there are few queries the keys are cut into splits,
// whose size follows from the shape, and merged in an order that never changes.
struct AttentionPagedCuda {
  uint16_t* y;                     // out bf16[T, Q, D]
  const uint16_t* q;               // in bf16[T, Q, D]
  const uint16_t* const* k_pages;  // device array of pages of this layer, bf16[KV, page_tokens, D] each
  const uint16_t* const* v_pages;
  float* scratch;  // attention_paged_scratch_bytes(args)
  int64_t offset;
  int64_t page_tokens;
  int64_t T;
  int64_t Q, KV, D;
};
int64_t attention_paged_scratch_bytes(const AttentionPagedCuda& args);
void attention_paged_cuda(const AttentionPagedCuda& args, CudaStream stream);

}  // namespace qn
