// What the forward and backward loops of attention share: where keys lie, which rows a task has, and packing both.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/attention.h"
#include "ops/attention_tiles.h"

namespace qn {

constexpr int64_t kMaxHeadDim = 512;  // what kWorkerScratchBytes has room for

constexpr int64_t padded(int64_t count) { return (count + kLane - 1) / kLane * kLane; }

const AttentionKernels& attention_kernels(Isa isa);
inline float score_scale(int64_t D) { return 1.0f / std::sqrt(static_cast<float>(D)); }

// Error(kInvalidArgument) unless Q is a multiple of KV and every dim is in range.
void check_attention_shape(const AttentionShape& shape);

// Keys and values of one sequence, whose position 0 is position `first` of the pages. Position p of head h starts at
// element h · head_stride + (p mod page_tokens) · token_stride of page p / page_tokens. Without a cache all sequences
// lie on one page.
struct KeyPages {
  const void* const* k;
  const void* const* v;
  DType dtype;
  int64_t page_tokens, head_stride, token_stride;
  const uint8_t* mask = nullptr;  // u8[positions] of all pages, or null
  int64_t first = 0;

  // Calls use(pointer, index, run) for each part of positions [begin, begin + count) that lies on one page: `run` rows
  // token_stride apart, the first of which is position begin + index.
  template <typename Use>
  void each_run(const void* const* pages, int64_t head, int64_t begin, int64_t count, Use&& use) const {
    for (int64_t i = 0; i < count;) {
      const int64_t page = (first + begin + i) / page_tokens, at = (first + begin + i) % page_tokens;
      const int64_t run = std::min(count - i, page_tokens - at);
      const int64_t element = head * head_stride + at * token_stride;
      use(static_cast<const char*>(pages[page]) + element * dtype_bytes(dtype), i, run);
      i += run;
    }
  }
  bool hidden(int64_t s) const { return mask && !mask[first + s]; }
};

// Rows [tokens · heads] of a task: row r is query first_token + r / heads, head first_head + r % heads. All read the
// same key/value head.
struct QueryRows {
  int64_t first_token, tokens, first_head, heads, kv;

  int64_t count() const { return tokens * heads; }
  int64_t token(int64_t row) const { return first_token + row / heads; }
  // Index of the row in [T, Q].
  int64_t index(int64_t row, int64_t Q) const { return token(row) * Q + first_head + row % heads; }
};

// Cuts [T, Q] into tasks of at most kRowTile rows that share one key/value head; a group wider than that is cut too.
struct QueryTiling {
  int64_t T, group, heads, chunks, tokens, tiles;

  QueryTiling(int64_t T, int64_t Q, int64_t KV)
      : T(T),
        group(Q / KV),
        heads(std::min(group, kRowTile)),
        chunks((group + heads - 1) / heads),
        tokens(std::min(T, kRowTile / heads)),
        tiles((T + tokens - 1) / tokens) {}

  QueryRows rows(int64_t kv, int64_t chunk, int64_t tile) const {
    const int64_t head = chunk * heads, token = tile * tokens;
    return {token, std::min(tokens, T - token), kv * group + head, std::min(heads, group - head), kv};
  }
};

// Tokens [first, first + tokens) of [B·T] that attend to each other and to nothing else: a sequence or a segment of
// one.
struct Span {
  int64_t first, tokens;
};

// One tile of a span, counted from its first token.
struct SpanTile {
  Span span;
  int64_t tile;
};
// The tiles of all spans that `starts` (or null) cuts B sequences of T tokens into, in ascending order of `tile`, so
// that their work grows or shrinks along the list; tiles_of(tokens) is their number in a span.
template <typename TilesOf>
std::vector<SpanTile> span_tiles(const int32_t* starts, int64_t B, int64_t T, TilesOf&& tiles_of) {
  std::vector<SpanTile> list;
  for (int64_t first = 0; first < B * T;) {
    int64_t end = first + 1;
    while (end % T != 0 && (!starts || starts[end] != end % T)) ++end;
    for (int64_t tile = 0; tile < tiles_of(end - first); ++tile) list.push_back({{first, end - first}, tile});
    first = end;
  }
  std::stable_sort(list.begin(), list.end(), [](const SpanTile& a, const SpanTile& b) { return a.tile < b.tile; });
  return list;
}

// use(span, rows, worker) for the rows of every span, as tasks of the pool. Last tiles first: they see the most keys,
// and a long task at the end would leave the other threads idle.
template <typename Use>
void run_query_tasks(const int32_t* starts, const AttentionShape& shape, const Cpu& cpu, Use&& use) {
  const auto& [B, T, Q, KV, D] = shape;
  const auto tiling_of = [&](int64_t tokens) { return QueryTiling(tokens, Q, KV); };
  const auto tiles = span_tiles(starts, B, T, [&](int64_t tokens) { return tiling_of(tokens).tiles; });
  const int64_t chunks = tiling_of(T).chunks, units = KV * chunks, count = static_cast<int64_t>(tiles.size());
  cpu.pool.run(units * count, 1, [&](int64_t index, int64_t, int worker) {
    cpu.check_cancelled();
    const auto& [span, tile] = tiles[static_cast<size_t>(count - 1 - index / units)];
    const int64_t unit = index % units;
    use(span, tiling_of(span.tokens).rows(unit / chunks, unit % chunks, tile), worker);
  });
}

// Rows of x f32[T, Q, D] to packed rows.
void pack_queries(float* to, const float* x, const QueryRows& rows, int64_t Q, int64_t D);
// Positions [begin, begin + count) of k or v to packed rows; positions that the mask hides, and those up to
// padded(count), become zeros, so that whatever lies in hidden memory reaches nobody.
void pack_keys(const AttentionKernels& kernels, float* to, const KeyPages& keys, const void* const* pages, int64_t kv,
               int64_t begin, int64_t count, int64_t D);
// Writes −inf over the scores s[rows, kKeyTile] of keys begin .. begin + count − 1 that the row may not see: those
// after its position (offset + token), hidden ones, and the padding.
void hide_keys(float* s, const QueryRows& rows, const KeyPages& keys, int64_t offset, int64_t begin, int64_t count);

}  // namespace qn
