// The forward loops of attention: tiles of rows × tiles of keys with an online softmax (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022). Nothing here depends on the number of
// threads: tiles and splits are cut by the shape alone.
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "ops/attention_task.h"

namespace qn {

namespace {

// Keys of one task when one tile of rows has too few tasks for many threads. 512 keys of D = 128 in 16 bits are 256
// KiB, some 20 µs of reading: far more than handing out a task.
constexpr int64_t kSplitKeys = 512;

// Rows up to which a task does not pack its keys.
constexpr int64_t kDirectRows = 8;

// Scratch of one task, in floats: what stays of kWorkerScratchBytes holds the partial results of splits.
struct ForwardScratch {
  float *q, *o, *s, *keys, *transposed, *max, *sum;

  static constexpr int64_t kFloats =
      2 * kRowTile * kMaxHeadDim + kRowTile * kKeyTile + 2 * kKeyTile * kMaxHeadDim + 2 * kRowTile;

  explicit ForwardScratch(float* base)
      : q(base),
        o(q + kRowTile * kMaxHeadDim),
        s(o + kRowTile * kMaxHeadDim),
        keys(s + kRowTile * kKeyTile),
        transposed(keys + kKeyTile * kMaxHeadDim),
        max(transposed + kKeyTile * kMaxHeadDim),
        sum(max + kRowTile) {}
};
static_assert(ForwardScratch::kFloats * sizeof(float) < kWorkerScratchBytes / 2);

struct ForwardTask {
  const AttentionKernels& kernels;
  KeyPages keys;
  QueryRows rows;
  int64_t offset, D;
  float scale;

  // Few rows leave a key tile too little work to pay for packing it: they read the cache as it lies.
  bool direct() const { return kernels.dot && rows.count() <= kDirectRows && D % kLane == 0 && !keys.mask; }

  // s = q · kᵀ over keys [begin, begin + count).
  void scores(const ForwardScratch& x, int64_t begin, int64_t count) const {
    const int64_t stride = padded(D);
    if (direct()) {
      keys.each_run(keys.k, rows.kv, begin, count, [&](const void* k, int64_t at, int64_t run) {
        kernels.dot({x.s + at, x.q, k, keys.dtype, stride, keys.token_stride, rows.count(), run, D});
      });
      return;
    }
    pack_keys(kernels, x.keys, keys, keys.k, rows.kv, begin, count, D);
    kernels.transpose(x.transposed, x.keys, stride, padded(count), stride);
    kernels.product({.c = {x.s, kKeyTile},
                     .a = {x.q, stride, 1},
                     .b = {x.transposed, kKeyTile},
                     .rows = rows.count(),
                     .columns = padded(count),
                     .depth = D,
                     .add = false});
  }

  // o += p · v over keys [begin, begin + count).
  void add_values(const ForwardScratch& x, int64_t begin, int64_t count) const {
    const int64_t stride = padded(D);
    TileProduct product = {.c = {x.o, stride},
                           .a = {x.s, kKeyTile, 1},
                           .b = {x.keys, stride},
                           .rows = rows.count(),
                           .columns = stride,
                           .depth = count,
                           .add = true};
    if (!direct()) {
      pack_keys(kernels, x.keys, keys, keys.v, rows.kv, begin, count, D);
      kernels.product(product);
      return;
    }
    keys.each_run(keys.v, rows.kv, begin, count, [&](const void* v, int64_t at, int64_t run) {
      product.a.data = x.s + at;
      product.b = {v, keys.token_stride, keys.dtype, true};
      product.depth = run;
      kernels.product(product);
    });
  }

  // o = Σ exp((s − max) scale) v and sum = Σ exp((s − max) scale) over keys [begin, end), not yet divided.
  void run(const ForwardScratch& x, const float* q, int64_t Q, int64_t begin, int64_t end) const {
    const int64_t stride = padded(D), count = rows.count();
    pack_queries(x.q, q, rows, Q, D);
    std::memset(x.o, 0, sizeof(float) * count * stride);
    std::fill_n(x.max, count, -INFINITY);
    std::fill_n(x.sum, count, 0.0f);
    for (int64_t s0 = begin; s0 < end; s0 += kKeyTile) {
      const int64_t tile = std::min(kKeyTile, end - s0);
      scores(x, s0, tile);
      hide_keys(x.s, rows, keys, offset, s0, tile);
      for (int64_t r = 0; r < count; ++r) {
        const float factor = kernels.softmax(x.s + r * kKeyTile, padded(tile), scale, x.max + r, x.sum + r);
        if (factor == 1.0f) continue;
        for (int64_t d = 0; d < stride; ++d) x.o[r * stride + d] *= factor;
      }
      add_values(x, s0, tile);
    }
  }
};

// y = o / sum and lse = max · scale + log(sum); zeros and −inf where no key was seen.
void finish_row(float* y, float* lse, const float* o, float max, float sum, float scale, int64_t D) {
  const bool seen = sum != 0.0f;
  for (int64_t d = 0; d < D; ++d) y[d] = seen ? o[d] / sum : 0.0f;
  if (lse) *lse = seen ? max * scale + std::log(sum) : -INFINITY;
}

// Spans of queries at positions offset .. of their keys.
struct Forward {
  float* y;
  float* lse;
  const float* q;
  KeyPages keys;
  const int32_t* starts;
  AttentionShape shape;
  int64_t offset;

  // Of rows of the span that begins at token `first`.
  ForwardTask task(const QueryRows& rows, int64_t first, Isa isa) const {
    ForwardTask task = {attention_kernels(isa), keys, rows, offset, shape.D, score_scale(shape.D)};
    task.keys.first = first;
    return task;
  }

  void finish(const QueryRows& rows, int64_t first, int64_t row, const float* o, float max, float sum) const {
    const int64_t index = first * shape.Q + rows.index(row, shape.Q);
    finish_row(y + index * shape.D, lse ? lse + index : nullptr, o, max, sum, score_scale(shape.D), shape.D);
  }
};

// A task sees all its keys.
void run_whole(const Forward& forward, const Cpu& cpu) {
  const int64_t Q = forward.shape.Q, D = forward.shape.D;
  run_query_tasks(forward.starts, forward.shape, cpu, [&](const Span& span, const QueryRows& rows, int worker) {
    const ForwardScratch x(cpu.pool.scratch<float>(worker));
    const int64_t end = forward.offset + rows.first_token + rows.tokens;
    forward.task(rows, span.first, cpu.isa).run(x, forward.q + span.first * Q * D, Q, 0, end);
    for (int64_t r = 0; r < rows.count(); ++r) {
      forward.finish(rows, span.first, r, x.o + r * padded(D), x.max[r], x.sum[r]);
    }
  });
}

// Results of one tile of rows over one split of keys: o f32[rows, padded(D)], max f32[rows], sum f32[rows].
struct Partial {
  float *o, *max, *sum;
  Partial(float* base, int64_t rows, int64_t D) : o(base), max(o + rows * padded(D)), sum(max + rows) {}
  static int64_t floats(int64_t rows, int64_t D) { return rows * (padded(D) + 2); }
};

// Merges the splits of row `row` in ascending order into the first.
void merge_row(const Partial& first, const float* base, int64_t floats, int64_t splits, int64_t row, int64_t rows,
               float scale, int64_t D) {
  float highest = -INFINITY;
  const auto partial = [&](int64_t i) { return Partial(const_cast<float*>(base) + i * floats, rows, D); };
  for (int64_t i = 0; i < splits; ++i) highest = std::max(highest, partial(i).max[row]);
  const float shift = highest == -INFINITY ? 0.0f : highest;
  float* o = first.o + row * padded(D);
  float sum = 0.0f;
  for (int64_t i = 0; i < splits; ++i) {
    const Partial part = partial(i);
    const float factor = std::exp((part.max[row] - shift) * scale);
    const float* from = part.o + row * padded(D);
    for (int64_t d = 0; d < D; ++d) o[d] = i == 0 ? from[d] * factor : o[d] + from[d] * factor;
    sum += part.sum[row] * factor;
  }
  first.max[row] = highest;
  first.sum[row] = sum;
}

// One tile of rows and few heads, but many keys: the keys are split too. The partial results lie in the part of the
// first worker's scratch that tasks do not use.
struct Splits {
  int64_t count, keys;
  Splits(int64_t context, int64_t units, int64_t floats) {
    const int64_t room = (kWorkerScratchBytes / int64_t{sizeof(float)} - ForwardScratch::kFloats) / (units * floats);
    count = std::max<int64_t>(1, std::min(room, (context + kSplitKeys - 1) / kSplitKeys));
    keys = ((context + count - 1) / count + kKeyTile - 1) / kKeyTile * kKeyTile;
    count = (context + keys - 1) / keys;
  }
};

void run_split(const Forward& forward, const Splits& splits, const Cpu& cpu) {
  const auto& [B, T, Q, KV, D] = forward.shape;
  const QueryTiling tiling(T, Q, KV);
  const int64_t context = forward.offset + T;
  const int64_t floats = Partial::floats(T * tiling.heads, D), units = KV * tiling.chunks;
  float* partials = cpu.pool.scratch<float>(0) + ForwardScratch::kFloats;
  const auto rows_of = [&](int64_t unit) { return tiling.rows(unit / tiling.chunks, unit % tiling.chunks, 0); };

  cpu.pool.run(units * splits.count, 1, [&](int64_t index, int64_t, int worker) {
    cpu.check_cancelled();
    const int64_t unit = index / splits.count, begin = index % splits.count * splits.keys;
    const QueryRows rows = rows_of(unit);
    const ForwardScratch x(cpu.pool.scratch<float>(worker));
    forward.task(rows, 0, cpu.isa).run(x, forward.q, Q, begin, std::min(context, begin + splits.keys));
    const Partial partial(partials + index * floats, rows.count(), D);
    std::memcpy(partial.o, x.o, sizeof(float) * rows.count() * padded(D));
    std::memcpy(partial.max, x.max, sizeof(float) * rows.count());
    std::memcpy(partial.sum, x.sum, sizeof(float) * rows.count());
  });
  for (int64_t unit = 0; unit < units; ++unit) {
    const QueryRows rows = rows_of(unit);
    float* base = partials + unit * splits.count * floats;
    const Partial first(base, rows.count(), D);
    for (int64_t r = 0; r < rows.count(); ++r) {
      merge_row(first, base, floats, splits.count, r, rows.count(), score_scale(D), D);
      forward.finish(rows, 0, r, first.o + r * padded(D), first.max[r], first.sum[r]);
    }
  }
}

}  // namespace

void attention_cpu(const AttentionForward& args, const Cpu& cpu) {
  check_attention_shape(args.shape);
  const auto& [B, T, Q, KV, D] = args.shape;
  if (B == 0 || T == 0) return;
  const void *k = args.k, *v = args.v;
  const KeyPages keys = {&k, &v, DType::kF32, B * T, D, KV * D, args.mask};
  run_whole({args.y, args.lse, args.q, keys, args.starts, args.shape, 0}, cpu);
}

void attention_cached_cpu(const AttentionCached& args, const Cpu& cpu) {
  const AttentionShape shape = {1, args.T, args.Q, args.KV, args.D};
  check_attention_shape(shape);
  if (args.dtype != DType::kF32 && args.dtype != DType::kF16 && args.dtype != DType::kBF16) {
    fail(Code::kInvalidArgument, "Expected a cache of f32, f16 or bf16");
  }
  if (args.offset < 0 || args.page_tokens < 1) {
    fail(Code::kInvalidArgument,
         "Expected an offset of 0 or more and pages of 1 or more tokens but received %lld, %lld",
         (long long)args.offset, (long long)args.page_tokens);
  }
  if (args.T == 0) return;
  const KeyPages keys = {args.k_pages, args.v_pages, args.dtype, args.page_tokens, args.page_tokens * args.D, args.D};
  const Forward forward = {args.y, nullptr, args.q, keys, nullptr, shape, args.offset};
  const QueryTiling tiling(args.T, args.Q, args.KV);
  const Splits splits(args.offset + args.T, args.KV * tiling.chunks, Partial::floats(args.T * tiling.heads, args.D));
  if (tiling.tiles == 1 && splits.count > 1) {
    run_split(forward, splits, cpu);
  } else {
    run_whole(forward, cpu);
  }
}

}  // namespace qn
