// Longer than most files: one kernel whose phases share a row, a histogram and the barriers between blocks.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/sample.h"
#include "ops/sample_math.h"

namespace qn {

namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 32;
constexpr int kThreads = kWarps * kLanes;
constexpr int kMostBlocks = 16;
// Logits that a lane loads before it uses the first: Qwen3's 151,936 in one turn of 16 blocks.
constexpr int kTurns = 10;
// Of a histogram: one a thread.
constexpr int kBinBits = 10, kBins = 1 << kBinBits;
static_assert(kBins == kThreads);
constexpr uint32_t kAllLanes = 0xffffffffu;

// The type that 64-bit atomics and shuffles take.
using Word = unsigned long long;
static_assert(sizeof(Word) == sizeof(uint64_t));

// What a lane, a warp, a block or the whole row knows of its logits.
struct Summary {
  Word best;  // key_of the largest penalised logit << 32 | ~its id: the larger is likelier, ties to the lowest id
  float max;  // of the raw logits
  float sum;  // of e^(raw − max)
  int32_t bad;
};
constexpr int32_t kNoneBad = INT32_MAX;

struct Histogram {
  Word sum[kBins];
  uint32_t count[kBins];
  Word light;
};

// Between blocks, in global memory.
struct Scratch {
  Summary summaries[kMostBlocks];
  Word totals[kMostBlocks];
  Histogram histograms[3];
  uint32_t likeliest_count;
  Word likeliest[kMostTopLogprobs];
};

// Of one block.
struct Shared {
  Summary summaries[kWarps];
  Word sums[kWarps];
  Word scan[kWarps];
  // A bin's sum in two halves: there is no 64-bit addition in shared memory.
  uint32_t low[kBins], high[kBins], count[kBins];
  // Key of the floor_rank-th largest of the warps' maxima: what is below it in this block is behind as many of its
  // tokens.
  uint32_t floor_key;
  // What the thread of the bin with the last token says to all.
  int bin;
  bool whole;
  Word missing;
  Word bits;  // random
  int32_t position;
};

struct Job {
  SampleCuda args;
  Scratch* scratch;
  float* values;  // f32[V] in global memory; null: they fit shared memory
  int ids_per_warp, id_bits;
  float inverse_temperature;
  uint64_t top_p_fraction;  // 0: off
  uint64_t least_weight;
  // Of top-p: lighter tokens together weigh less than what it leaves over.
  uint64_t light_weight;
  // Logits that far below the maximum weigh 0, and less than least_weight.
  float zero_distance, least_distance;
  bool uses_histograms;
  int floor_rank;  // 0, or the most of top_k and top_logprobs where that is at most 32: see Shared::floor_key
};

// Ids of one warp, and the penalised logits of its block.
struct Row {
  int begin, end;
  int values_begin;
  float* values;

  __device__ float& value(int id) const { return values[id - values_begin]; }
  template <typename Use>
  __device__ void each(Use use) const {
    for (int id = begin + static_cast<int>(threadIdx.x) % kLanes; id < end; id += kLanes) use(id);
  }
};

// Waits for all blocks; what they wrote to global memory before is seen after.
__device__ void sync_blocks() {
#if __CUDA_ARCH__ >= 900
  if (gridDim.x > 1) {
    asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// Ascends with the value; both zeros are one.
__device__ uint32_t key_of(float value) {
  const uint32_t bits = value == 0 ? 0 : __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float value_of(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

__device__ int32_t best_id(Word best) { return static_cast<int32_t>(~static_cast<uint32_t>(best)); }

__device__ Word sum_of_lanes(Word value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ Word sum_up_to_lane(Word value) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const Word below = __shfl_up_sync(kAllLanes, value, step);
    if (static_cast<int>(threadIdx.x) % kLanes >= step) value += below;
  }
  return value;
}

__device__ float max_of_lanes(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

__device__ Summary summary_of_lanes(Summary s) {
  const float row_max = max_of_lanes(s.max);
  // Lanes without logits have −inf: of two of them the difference is NaN.
  s.sum *= s.max == row_max ? 1.0f : __expf(s.max - row_max);
  s.max = row_max;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    s.sum += __shfl_xor_sync(kAllLanes, s.sum, step);
    s.best = max(s.best, __shfl_xor_sync(kAllLanes, s.best, step));
  }
  s.bad = __reduce_min_sync(kAllLanes, s.bad);
  return s;
}

constexpr Summary kEmptySummary{0, -INFINITY, 0, kNoneBad};

// Fills row.values and sums up the warp's logits. The running sum is rescaled once a turn.
__device__ Summary read_logits(const SampleCuda& args, const Row& row) {
  const float penalty = args.options.repetition_penalty;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  Summary own = kEmptySummary;
  float best = -INFINITY;
  int32_t best_id = 0;
  for (int first = row.begin; first < row.end; first += kTurns * kLanes) {
    float raw[kTurns];
    float turn_max = own.max;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int id = first + i * kLanes + lane;
      raw[i] = id < row.end ? args.logits[id] : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) turn_max = fmaxf(turn_max, raw[i]);
    turn_max = max_of_lanes(turn_max);
    own.sum *= __expf(own.max - turn_max);
    own.max = turn_max;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int id = first + i * kLanes + lane;
      own.sum += __expf(raw[i] - turn_max);
      if (id >= row.end) continue;
      if (!isfinite(raw[i])) own.bad = min(own.bad, id);
      float value = raw[i];
      if (penalty != 1 && args.seen[id]) value = penalised_logit(value, penalty);
      row.value(id) = value;
      if (value > best) {
        best = value;
        best_id = id;
      }
    }
  }
  if (best > -INFINITY) own.best = Word{key_of(best)} << 32 | ~static_cast<uint32_t>(best_id);
  return summary_of_lanes(own);
}

// One warp calls it. Warps without logits have equal maxima, 0: with fewer than `rank` others that is the floor.
__device__ void find_floor(int rank, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const Word own = shared.summaries[lane].best;
  int larger = 0;
#pragma unroll
  for (int other = 0; other < kLanes; ++other) larger += __shfl_sync(kAllLanes, own, other) > own;
  if (lane == 0) shared.floor_key = 0;
  __syncwarp();
  if (larger == rank - 1) shared.floor_key = static_cast<uint32_t>(own >> 32);
}

// The same in every thread of every block. A barrier between blocks.
__device__ Summary summarise(const Job& job, const Row& row, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  // Loaded before the logits, used after them.
  const int32_t position = *job.args.position + 1;
  const Summary own = read_logits(job.args, row);
  if (lane == 0) shared.summaries[warp] = own;
  __syncthreads();
  // Side by side.
  if (warp == 0) {
    const Summary block = summary_of_lanes(shared.summaries[lane]);
    if (lane == 0) job.scratch->summaries[blockIdx.x] = block;
  } else if (warp == 1) {
    if (job.floor_rank > 0) find_floor(job.floor_rank, shared);
  } else if (threadIdx.x == 2 * kLanes) {
    shared.position = position;
    if (job.args.options.temperature > 0) shared.bits = draw_bits(job.args.options.seed, position);
  }
  sync_blocks();
  Summary all = kEmptySummary;
  if (lane < static_cast<int>(gridDim.x)) {
    const Summary* from = job.scratch->summaries + lane;
    all = {__ldcg(&from->best), __ldcg(&from->max), __ldcg(&from->sum), __ldcg(&from->bad)};
  }
  return summary_of_lanes(all);
}

// The sum over the block's threads up to and with the own one; the whole block calls it.
__device__ Word sum_up_to_thread(Word value, Word& total, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const Word in_warp = sum_up_to_lane(value);
  if (lane == kLanes - 1) shared.scan[warp] = in_warp;
  __syncthreads();
  const Word warps = sum_up_to_lane(shared.scan[lane]);
  total = __shfl_sync(kAllLanes, warps, kLanes - 1);
  const Word before = __shfl_sync(kAllLanes, warps, max(warp - 1, 0));
  __syncthreads();  // the next call writes shared.scan
  return in_warp + (warp > 0 ? before : 0);
}

// Tokens are ordered by their place, likeliest first: (key of the maximum − key) << id_bits | id.
__device__ Word place_of(float value, int id, uint32_t max_key, int id_bits) {
  return static_cast<Word>(max_key - key_of(value)) << id_bits | static_cast<Word>(id);
}

// Bins of the first histogram have 32 steps for every doubling of the distance between keys: fine near the maximum.
__device__ int distance_bin(uint32_t distance) {
  if (distance < 64) return static_cast<int>(distance);
  const int shift = 26 - __clz(static_cast<int>(distance));
  return (shift << 5) + static_cast<int>(distance >> shift);
}

// Places begin .. begin + 2^bits − 1.
struct Interval {
  Word begin;
  int bits;
};

__device__ Interval places_of_distance_bin(int bin, int id_bits) {
  if (bin < 64) return {static_cast<Word>(bin) << id_bits, id_bits};
  const int shift = (bin >> 5) - 1;
  return {static_cast<Word>((bin & 31) + 32) << (shift + id_bits), shift + id_bits};
}

// What the last place is searched by: the tokens themselves, or their weights.
struct ByCount {
  static constexpr bool kCounts = true;
  Word wanted;

  __device__ Word needed(Word) const { return wanted; }
};
struct ByWeight {
  static constexpr bool kCounts = false;
  const Job& job;
  float max;
  Word last_of_k;
  Word light;

  __device__ Word amount(float value, Word at) const {
    return at <= last_of_k ? sample_weight(value, max, job.inverse_temperature) : 0;
  }
  __device__ Word needed(Word total) const { return nucleus_weight(job.top_p_fraction, total); }
};

// The last place, likeliest first, that belongs to the fewest tokens whose amounts sum up to by.needed(sum of all).
// Narrows the interval that holds it by a histogram of 1024 bins a pass, until its bin has one token or belongs wholly;
// two passes for most logits, six at most (all equal). A barrier between blocks a pass. `pass` counts on from call to
// call: a histogram is used every third pass and zeroed in between.
// Values below `floor` are known to lie behind the last place, as are amounts below by.light: these count in the sum
// of all alone, so that nearly all of a vocabulary costs a comparison, or no addition that others wait for.
template <typename Value, typename By>
__device__ Word last_place(const Job& job, const Row& row, Shared& shared, int& pass, uint32_t max_key, float floor,
                           Value value, By by) {
  const int thread = static_cast<int>(threadIdx.x);
  Interval interval{0, 32 + job.id_bits};
  for (bool first = true;; first = false, ++pass) {
    const int shift = max(interval.bits - kBinBits, 0);
    shared.low[thread] = shared.high[thread] = shared.count[thread] = 0;
    __syncthreads();
    Word light = 0;
    row.each([&](int id) {
      const float own = value(id);
      if (own < floor) return;
      const Word at = place_of(own, id, max_key, job.id_bits);
      if ((at - interval.begin) >> interval.bits != 0) return;
      const int bin = first ? distance_bin(static_cast<uint32_t>(at >> job.id_bits))
                            : static_cast<int>((at - interval.begin) >> shift);
      if constexpr (!By::kCounts) {
        const Word amount = by.amount(own, at);
        if (amount < by.light) {
          light += amount;
          return;
        }
        const auto low = static_cast<uint32_t>(amount);
        const uint32_t carry = atomicAdd(&shared.low[bin], low) > ~low;
        const uint32_t high = static_cast<uint32_t>(amount >> 32) + carry;
        if (high > 0) atomicAdd(&shared.high[bin], high);
      }
      atomicAdd(&shared.count[bin], 1);
    });
    __syncthreads();
    Histogram& histogram = job.scratch->histograms[pass % 3];
    if (shared.count[thread] > 0) {
      const Word sum = By::kCounts ? shared.count[thread] : Word{shared.high[thread]} << 32 | shared.low[thread];
      atomicAdd(&histogram.sum[thread], sum);
      atomicAdd(&histogram.count[thread], shared.count[thread]);
    }
    if constexpr (!By::kCounts) {
      light = first ? sum_of_lanes(light) : 0;
      if (light > 0 && thread % kLanes == 0) atomicAdd(&histogram.light, light);
    }
    sync_blocks();
    const Word own = __ldcg(&histogram.sum[thread]);
    const uint32_t count = __ldcg(&histogram.count[thread]);
    const Word all_light = __ldcg(&histogram.light);
    if (thread % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x)) {
      // Every block has read this one before the barrier, and adds to it again after the next.
      Histogram& free = job.scratch->histograms[(pass + 2) % 3];
      free.sum[thread] = 0;
      free.count[thread] = 0;
      if (thread == 0) free.light = 0;
    }
    Word total;
    const Word up_to = sum_up_to_thread(own, total, shared);
    const Word missing = first ? by.needed(total + all_light) : shared.missing;
    __syncthreads();
    if (up_to - own < missing && missing <= up_to) {
      shared.bin = thread;
      shared.missing = missing - (up_to - own);
      shared.whole = missing == up_to || count == 1;
    }
    __syncthreads();
    const int bin = shared.bin;
    interval = first ? places_of_distance_bin(bin, job.id_bits)
                     : Interval{interval.begin + (static_cast<Word>(bin) << shift), shift};
    if (!shared.whole && interval.bits > 0) continue;
    ++pass;
    return interval.begin + (Word{1} << interval.bits) - 1;
  }
}

__device__ float logprob_of(float logit, const Summary& row) { return (logit - row.max) - logf(row.sum); }

// The likeliest tokens by raw logits: gathered in any order, then each is put where the number of likelier ones says.
__device__ void report_likeliest(const Job& job, const Row& row, Shared& shared, int& pass, const Summary& all) {
  const SampleCuda& args = job.args;
  const auto wanted = static_cast<int>(min(int64_t{args.options.top_logprobs}, args.V));
  const uint32_t max_key = key_of(all.max);
  const auto value = [&](int id) { return args.logits[id]; };
  const bool raw = args.options.repetition_penalty == 1 && wanted <= job.floor_rank;
  const float floor = raw ? value_of(shared.floor_key) : -INFINITY;
  const Word last = last_place(job, row, shared, pass, max_key, floor, value, ByCount{static_cast<Word>(wanted)});
  row.each([&](int id) {
    const Word at = place_of(value(id), id, max_key, job.id_bits);
    if (at <= last) job.scratch->likeliest[atomicAdd(&job.scratch->likeliest_count, 1)] = at;
  });
  sync_blocks();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  TokenLogprob* top = args.top + static_cast<int64_t>(shared.position % args.slots) * wanted;
  for (int i = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kLanes); i < wanted; i += warps) {
    const Word at = __ldcg(&job.scratch->likeliest[i]);
    int likelier = 0;
    for (int j = lane; j < wanted; j += kLanes) likelier += __ldcg(&job.scratch->likeliest[j]) < at;
    likelier = __reduce_add_sync(kAllLanes, likelier);
    const auto id = static_cast<int32_t>(at & ((Word{1} << job.id_bits) - 1));
    if (lane == 0) top[likelier] = {id, logprob_of(args.logits[id], all)};
  }
  sync_blocks();  // before the thread that writes the result's position
}

// One thread of the grid calls it.
__device__ void report(const SampleCuda& args, const Shared& shared, SampleResult result) {
  *args.next_id = result.id;
  if (args.seen && result.bad_id < 0) args.seen[result.id] = 1;
  SampleResult* to = args.results + shared.position % args.slots;
  to->id = result.id;
  to->logprob = result.logprob;
  to->bad_id = result.bad_id;
  to->bad_value = result.bad_value;
  __threadfence_system();
  *static_cast<volatile int32_t*>(&to->position) = shared.position;
}

__device__ void report_chosen(const SampleCuda& args, const Shared& shared, int32_t id, const Summary& all) {
  report(args, shared, {id, logprob_of(args.logits[id], all), -1, 0, 0});
}

// What top-k, top-p and min-p leave.
struct Kept {
  const Job& job;
  float max, floor;
  uint32_t max_key;
  Word last;

  __device__ Word weight(float value, int id) const {
    if (value < floor || place_of(value, id, max_key, job.id_bits) > last) return 0;
    const Word own = sample_weight(value, max, job.inverse_temperature);
    return own >= job.least_weight ? own : 0;
  }
};

__device__ Kept kept_tokens(const Job& job, const Row& row, Shared& shared, int& pass, const Summary& all) {
  const SampleOptions& options = job.args.options;
  const auto max_key = static_cast<uint32_t>(all.best >> 32);
  const float max = value_of(max_key);
  const auto value = [&](int id) { return row.value(id); };
  Word last = ~Word{0};
  float floor = max - job.zero_distance;
  if (options.top_k > 0 && options.top_k < job.args.V) {
    const float own = options.top_k <= job.floor_rank ? value_of(shared.floor_key) : -INFINITY;
    last = last_place(job, row, shared, pass, max_key, own, value, ByCount{static_cast<Word>(options.top_k)});
    // The last place may lie beyond every key: then this is NaN, and fmaxf takes the other.
    floor = fmaxf(floor, value_of(max_key - min(static_cast<uint32_t>(last >> job.id_bits), max_key)));
  }
  if (job.top_p_fraction > 0) {
    const ByWeight by{job, max, last, job.light_weight};
    last = min(last, last_place(job, row, shared, pass, max_key, floor, value, by));
  }
  return {job, max, fmaxf(floor, max - job.least_distance), max_key, last};
}

// One draw among the tokens that the filters leave, by the running sum in the order of ids: blocks, warps of the block
// that holds it, lanes of the warp that holds it with a run of neighbouring ids each.
__device__ void draw(const Job& job, const Row& row, Shared& shared, int& pass, const Summary& all) {
  const SampleCuda& args = job.args;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const Kept kept = kept_tokens(job, row, shared, pass, all);
  Word own = 0;
  row.each([&](int id) { own += kept.weight(row.value(id), id); });
  own = sum_of_lanes(own);
  if (lane == 0) shared.sums[warp] = own;
  __syncthreads();
  const Word up_to_warp = sum_up_to_lane(shared.sums[lane]);
  if (threadIdx.x == kLanes - 1) job.scratch->totals[blockIdx.x] = up_to_warp;
  sync_blocks();
  const Word up_to_block =
      sum_up_to_lane(lane < static_cast<int>(gridDim.x) ? __ldcg(&job.scratch->totals[lane]) : Word{0});
  const Word total = __shfl_sync(kAllLanes, up_to_block, kLanes - 1);
  const Word blocks_before = blockIdx.x == 0 ? 0 : __shfl_sync(kAllLanes, up_to_block, blockIdx.x - 1);
  const Word end = blocks_before + __shfl_sync(kAllLanes, up_to_warp, warp);
  const Word target = multiply_high(shared.bits, total);
  if (target < end - own || target >= end) return;

  const int each = job.ids_per_warp / kLanes, begin = row.begin + lane * each;
  const int stop = min(begin + each, row.end);
  Word sum = 0;
#pragma unroll 5
  for (int id = begin; id < stop; ++id) sum += kept.weight(row.value(id), id);
  Word up_to = end - own + sum_up_to_lane(sum) - sum;
  if (target < up_to || target >= up_to + sum) return;
  for (int id = begin;; ++id) {
    up_to += kept.weight(row.value(id), id);
    if (target < up_to) return report_chosen(args, shared, id, all);
  }
}

// computes   penalty → temperature → top-k → top-p → min-p → one draw, or argmax; log-probabilities     one row
// moves      read 4·V B (and V B of `seen`) once, then from shared memory   bound: latency
// launch     grid = one cluster of 16 blocks, 8 or 1 where the device takes no more, block 1024,
//            smem 12.9 KiB + 4·V/blocks
// needs      V <= 2^23, top_logprobs <= 1024
// numerics   weights and their sums in whole numbers: the id of the CPU; log-probabilities f32, exponentials within
//            2^-21
// measured   H200 V=151936, in a graph: greedy 5.7 µs, temperature 1 13.0 µs, top-k 20, top-p .95 18.9 µs, 2026-11-21
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ Job job) {
  extern __shared__ float block_values[];
  __shared__ Shared shared;
  const SampleCuda& args = job.args;
  const int V = static_cast<int>(args.V), ids_per_block = job.ids_per_warp * kWarps;
  const int block_begin = static_cast<int>(blockIdx.x) * ids_per_block;
  Row row;
  row.begin = min(V, block_begin + static_cast<int>(threadIdx.x) / kLanes * job.ids_per_warp);
  row.end = min(V, row.begin + job.ids_per_warp);
  row.values_begin = job.values ? 0 : block_begin;
  row.values = job.values ? job.values : block_values;

  if (job.uses_histograms) {
    auto* words = reinterpret_cast<uint32_t*>(job.scratch->histograms);
    const unsigned count = sizeof(Scratch::histograms) / 4, threads = gridDim.x * kThreads;
    for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < count; i += threads) words[i] = 0;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) job.scratch->likeliest_count = 0;

  const Summary all = summarise(job, row, shared);
  const bool reports = blockIdx.x == 0 && threadIdx.x == 0;
  if (all.bad != kNoneBad) {
    if (reports) report(args, shared, {0, 0, all.bad, args.logits[all.bad], 0});
    return;
  }
  int pass = 0;
  if (args.options.top_logprobs > 0) report_likeliest(job, row, shared, pass, all);
  if (args.options.temperature > 0) {
    draw(job, row, shared, pass, all);
  } else if (reports) {
    report_chosen(args, shared, best_id(all.best), all);
  }
}

constexpr int kMarkThreads = 256;

// computes   seen[id] = 1 for every id                                   one id a thread
// moves      4·count B, and a byte an id                                 bound: latency
// launch     grid ceil(count / 256), block 256
// needs      ids in the array
// numerics   none
// measured   not yet
__global__ void mark_seen_kernel(uint8_t* seen, const int32_t* ids, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kMarkThreads + threadIdx.x;
  if (i < count) seen[ids[i]] = 1;
}

// How far below the maximum a logit weighs less than `weight`: half more than the logarithm says, for the rounding of
// weights.
float distance_of(uint64_t weight, float inverse_temperature) {
  const double log = std::log(static_cast<double>(weight)) - kWeightBits * std::log(2.0);
  return static_cast<float>((0.5 - log) / static_cast<double>(inverse_temperature));
}

void set_filters(Job& job) {
  const SampleOptions& options = job.args.options;
  const bool draws = options.temperature > 0;
  const bool by_k = draws && options.top_k > 0, by_p = draws && options.top_p < 1;
  job.inverse_temperature = inverse_of(options.temperature);
  job.least_weight = least_weight(options.min_p);
  job.zero_distance = distance_of(1, job.inverse_temperature);
  job.least_distance = distance_of(job.least_weight, job.inverse_temperature);
  if (by_p) {
    job.top_p_fraction = std::max<uint64_t>(1, fraction_of(options.top_p));
    // The likeliest token alone weighs 2^40. Half of what the others may, because weights follow logits only up to
    // their rounding.
    const uint64_t left = multiply_high(~job.top_p_fraction, uint64_t{1} << kWeightBits);
    job.light_weight = std::max<uint64_t>(1, left / static_cast<uint64_t>(job.args.V) / 2);
  }
  job.uses_histograms = by_k || by_p || options.top_logprobs > 0;
  for (const int rank : {by_k ? options.top_k : 0, options.top_logprobs}) {
    if (rank <= kLanes) job.floor_rank = std::max(job.floor_rank, rank);
  }
}

int shared_limit() {
  int device = 0, most = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return most - static_cast<int>(sizeof(Shared));
}

void check(const SampleCuda& args) {
  if (args.V < 1 || args.V > kMostSampleIds) {
    fail(Code::kUnsupported, "Sampling takes 1 to %lld logits, not %lld", static_cast<long long>(kMostSampleIds),
         static_cast<long long>(args.V));
  }
  if (args.options.top_logprobs > kMostTopLogprobs && args.V > kMostTopLogprobs) {
    fail(Code::kUnsupported, "Sampling on CUDA reports at most %d log-probabilities, not %d", kMostTopLogprobs,
         args.options.top_logprobs);
  }
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t sample_scratch_bytes(int64_t V) { return static_cast<int64_t>(sizeof(Scratch)) + 4 * V; }

int32_t sample_blocks_cuda() {
  cudaFuncAttributes attributes = {};
  QN_CUDA_CHECK(cudaFuncGetAttributes(&attributes, sample_kernel));
  // Of a processor without clusters, or of code made for one.
  if (attributes.ptxVersion < 90) return 1;
  QN_CUDA_CHECK(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchConfig_t config = {};
  config.gridDim = kMostBlocks;
  config.blockDim = kThreads;
  int most = 0;
  QN_CUDA_CHECK(cudaOccupancyMaxPotentialClusterSize(&most, sample_kernel, &config));
  return static_cast<int32_t>(std::bit_floor(static_cast<unsigned>(std::clamp(most, 1, kMostBlocks))));
}

void sample_cuda(const SampleCuda& args, CudaStream stream) {
  check(args);
  Job job = {};
  job.args = args;
  job.scratch = static_cast<Scratch*>(args.scratch);
  const int64_t warps = int64_t{args.blocks} * kWarps;
  job.ids_per_warp = static_cast<int>((args.V + warps * kLanes - 1) / (warps * kLanes) * kLanes);
  job.id_bits = std::bit_width(static_cast<uint64_t>(args.V - 1));
  set_filters(job);

  int bytes = job.ids_per_warp * kWarps * 4;
  if (bytes > shared_limit()) {
    bytes = 0;
    job.values = reinterpret_cast<float*>(job.scratch + 1);
  }
  QN_CUDA_CHECK(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(args.blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(args.blocks);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = args.blocks > 1 ? 1 : 0;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, sample_kernel, job));
}

void mark_seen_cuda(uint8_t* seen, const int32_t* ids, int64_t count, CudaStream stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>((count + kMarkThreads - 1) / kMarkThreads);
  mark_seen_kernel<<<blocks, kMarkThreads, 0, static_cast<cudaStream_t>(stream)>>>(seen, ids, count);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
