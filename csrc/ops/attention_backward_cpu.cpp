// The backward loops of attention. With p = exp(s · scale − lse), dp = dy · vᵀ and delta = Σ_d dy · y of each row:
//   ds = p (dp − delta) scale,  dq = ds · k,  dk = dsᵀ · q,  dv = pᵀ · dy        (FlashAttention, Dao et al., 2022)
// Scores are recomputed twice, once for dq by tiles of rows and once for dk and dv by tiles of keys: 7 products instead
// of 5, but every output element is one sum in one task, in ascending order, whatever the number of threads.
#include <cmath>
#include <cstring>

#include "ops/attention_task.h"

namespace qn {

namespace {

struct BackwardScratch {
  float *q, *dy, *dq, *p, *ds, *k, *k_transposed, *v, *v_transposed, *dk, *dv, *lse, *delta;

  static constexpr int64_t kFloats =
      3 * kRowTile * kMaxHeadDim + 2 * kRowTile * kKeyTile + 6 * kKeyTile * kMaxHeadDim + 2 * kRowTile;

  explicit BackwardScratch(float* base)
      : q(base),
        dy(q + kRowTile * kMaxHeadDim),
        dq(dy + kRowTile * kMaxHeadDim),
        p(dq + kRowTile * kMaxHeadDim),
        ds(p + kRowTile * kKeyTile),
        k(ds + kRowTile * kKeyTile),
        k_transposed(k + kKeyTile * kMaxHeadDim),
        v(k_transposed + kKeyTile * kMaxHeadDim),
        v_transposed(v + kKeyTile * kMaxHeadDim),
        dk(v_transposed + kKeyTile * kMaxHeadDim),
        dv(dk + kKeyTile * kMaxHeadDim),
        lse(dv + kKeyTile * kMaxHeadDim),
        delta(lse + kRowTile) {}
};
static_assert(BackwardScratch::kFloats * sizeof(float) <= kWorkerScratchBytes);

// One sequence or segment.
struct BackwardTask {
  const AttentionKernels& kernels;
  const AttentionBackward& args;
  KeyPages keys;
  Span span;
  float scale;

  const float* queries(const float* x) const { return x + span.first * args.shape.Q * args.shape.D; }

  // Queries, output gradients and row statistics. delta lies in dq[row, 0] since write_deltas.
  void load_rows(const BackwardScratch& x, const QueryRows& rows) const {
    const auto& [B, T, Q, KV, D] = args.shape;
    pack_queries(x.q, queries(args.q), rows, Q, D);
    pack_queries(x.dy, queries(args.dy), rows, Q, D);
    for (int64_t r = 0; r < rows.count(); ++r) {
      const int64_t index = span.first * Q + rows.index(r, Q);
      // A row that saw no key has scores of −inf alone: with any finite lse its p is 0 and its gradient too.
      x.lse[r] = args.lse[index] == -INFINITY ? 0.0f : args.lse[index];
      x.delta[r] = args.dq[index * D];
    }
  }

  void load_keys(const BackwardScratch& x, int64_t kv, int64_t begin, int64_t count) const {
    const int64_t D = args.shape.D, stride = padded(D);
    pack_keys(kernels, x.k, keys, keys.k, kv, begin, count, D);
    pack_keys(kernels, x.v, keys, keys.v, kv, begin, count, D);
    kernels.transpose(x.k_transposed, x.k, stride, padded(count), stride);
    kernels.transpose(x.v_transposed, x.v, stride, padded(count), stride);
  }

  // p and ds of loaded rows and keys.
  void score_gradients(const BackwardScratch& x, const QueryRows& rows, int64_t begin, int64_t count) const {
    const int64_t D = args.shape.D;
    TileProduct product = {.c = {x.p, kKeyTile},
                           .a = {x.q, padded(D), 1},
                           .b = {x.k_transposed, kKeyTile},
                           .rows = rows.count(),
                           .columns = padded(count),
                           .depth = D,
                           .add = false};
    kernels.product(product);
    product.c.data = x.ds;
    product.a.data = x.dy;
    product.b.data = x.v_transposed;
    kernels.product(product);
    hide_keys(x.p, rows, keys, 0, begin, count);
    for (int64_t r = 0; r < rows.count(); ++r) {
      kernels.gradient(x.p + r * kKeyTile, x.ds + r * kKeyTile, padded(count), scale, x.lse[r], x.delta[r]);
    }
  }

  void query_gradients(const BackwardScratch& x, const QueryRows& rows) const {
    const auto& [B, T, Q, KV, D] = args.shape;
    const int64_t stride = padded(D), end = rows.first_token + rows.tokens;
    load_rows(x, rows);
    for (int64_t s0 = 0; s0 < end; s0 += kKeyTile) {
      const int64_t count = std::min(kKeyTile, end - s0);
      load_keys(x, rows.kv, s0, count);
      score_gradients(x, rows, s0, count);
      kernels.product({.c = {x.dq, stride},
                       .a = {x.ds, kKeyTile, 1},
                       .b = {x.k, stride},
                       .rows = rows.count(),
                       .columns = stride,
                       .depth = count,
                       .add = s0 > 0});
    }
    for (int64_t r = 0; r < rows.count(); ++r) {
      std::memcpy(args.dq + (span.first * Q + rows.index(r, Q)) * D, x.dq + r * stride, sizeof(float) * D);
    }
  }

  void key_gradients(const BackwardScratch& x, int64_t kv, int64_t begin) const {
    const auto& [B, T, Q, KV, D] = args.shape;
    const QueryTiling tiling(span.tokens, Q, KV);
    const int64_t stride = padded(D), count = std::min(kKeyTile, span.tokens - begin);
    load_keys(x, kv, begin, count);
    std::memset(x.dk, 0, sizeof(float) * count * stride);
    std::memset(x.dv, 0, sizeof(float) * count * stride);
    for (int64_t tile = begin / tiling.tokens; tile < tiling.tiles; ++tile) {
      for (int64_t chunk = 0; chunk < tiling.chunks; ++chunk) {
        const QueryRows rows = tiling.rows(kv, chunk, tile);
        load_rows(x, rows);
        score_gradients(x, rows, begin, count);
        TileProduct product = {.c = {x.dv, stride},
                               .a = {x.p, 1, kKeyTile},
                               .b = {x.dy, stride},
                               .rows = count,
                               .columns = stride,
                               .depth = rows.count(),
                               .add = true};
        kernels.product(product);
        product.c.data = x.dk;
        product.a.data = x.ds;
        product.b.data = x.q;
        kernels.product(product);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = ((span.first + begin + i) * KV + kv) * D;
      std::memcpy(args.dk + at, x.dk + i * stride, sizeof(float) * D);
      std::memcpy(args.dv + at, x.dv + i * stride, sizeof(float) * D);
    }
  }
};

// dq[row, 0] = Σ_d dy · y. Until the rows' own dq is written this spares a buffer of [B, T, Q].
void write_deltas(const AttentionBackward& args, int64_t begin, int64_t end) {
  const int64_t D = args.shape.D;
  for (int64_t row = begin; row < end; ++row) {
    double delta = 0.0;
    for (int64_t d = 0; d < D; ++d) delta += double{args.dy[row * D + d]} * args.y[row * D + d];
    args.dq[row * D] = static_cast<float>(delta);
  }
}

}  // namespace

void attention_backward_cpu(const AttentionBackward& args, const Cpu& cpu) {
  check_attention_shape(args.shape);
  const auto& [B, T, Q, KV, D] = args.shape;
  if (B == 0 || T == 0) return;
  const void *k = args.k, *v = args.v;
  const auto task_of = [&](const Span& span) {
    return BackwardTask{attention_kernels(cpu.isa),
                        args,
                        {&k, &v, DType::kF32, B * T, D, KV * D, args.mask, span.first},
                        span,
                        score_scale(D)};
  };
  cpu.pool.run(B * T * Q, 256, [&](int64_t begin, int64_t end, int) { write_deltas(args, begin, end); });

  // First key tiles first: they are seen by the most queries.
  const auto key_tiles =
      span_tiles(args.starts, B, T, [](int64_t tokens) { return (tokens + kKeyTile - 1) / kKeyTile; });
  cpu.pool.run(KV * static_cast<int64_t>(key_tiles.size()), 1, [&](int64_t index, int64_t, int worker) {
    cpu.check_cancelled();
    const auto& [span, tile] = key_tiles[static_cast<size_t>(index / KV)];
    const BackwardScratch x(cpu.pool.scratch<float>(worker));
    task_of(span).key_gradients(x, index % KV, tile * kKeyTile);
  });

  // After all of dk and dv: this overwrites the deltas.
  run_query_tasks(args.starts, args.shape, cpu, [&](const Span& span, const QueryRows& rows, int worker) {
    const BackwardScratch x(cpu.pool.scratch<float>(worker));
    task_of(span).query_gradients(x, rows);
  });
}

}  // namespace qn
