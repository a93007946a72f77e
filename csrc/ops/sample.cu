// Longer than most files: one kernel whose phases share a row, a histogram and the barriers between blocks.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

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
};

// Ids of one warp, and the penalised logits of its block: each is written and read by the same lane.
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
  asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
#else
  __syncthreads();  // there is one block
#endif
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

// The same in every thread of every block. A barrier between blocks.
__device__ Summary summarise(const Job& job, const Row& row, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const Summary own = read_logits(job.args, row);
  if (lane == 0) shared.summaries[warp] = own;
  __syncthreads();
  if (warp == 0) {
    const Summary block = summary_of_lanes(shared.summaries[lane]);
    if (lane == 0) job.scratch->summaries[blockIdx.x] = block;
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

// The last place, likeliest first, that belongs to the fewest tokens whose measures sum up to needed(total). Narrows
// the interval that holds it by a histogram of 1024 bins a pass, until its bin has one token or belongs wholly; two
// passes for most logits, six at most (all equal). A barrier between blocks a pass. `pass` counts on from call to call:
// a histogram is used every third pass and zeroed in between.
template <typename Place, typename Measure, typename Needed>
__device__ Word last_place(const Job& job, const Row& row, Shared& shared, int& pass, Place place, Measure measure,
                           Needed needed) {
  const int thread = static_cast<int>(threadIdx.x);
  Interval interval{0, 32 + job.id_bits};
  for (bool first = true;; first = false, ++pass) {
    const int shift = max(interval.bits - kBinBits, 0);
    shared.low[thread] = shared.high[thread] = shared.count[thread] = 0;
    __syncthreads();
    row.each([&](int id) {
      const Word at = place(id);
      if ((at - interval.begin) >> interval.bits != 0) return;
      const Word amount = measure(id, at);
      if (amount == 0) return;
      const int bin = first ? distance_bin(static_cast<uint32_t>(at >> job.id_bits))
                            : static_cast<int>((at - interval.begin) >> shift);
      const auto low = static_cast<uint32_t>(amount);
      const uint32_t carry = atomicAdd(&shared.low[bin], low) > ~low;
      const uint32_t high = static_cast<uint32_t>(amount >> 32) + carry;
      if (high > 0) atomicAdd(&shared.high[bin], high);
      atomicAdd(&shared.count[bin], 1);
    });
    __syncthreads();
    Histogram& histogram = job.scratch->histograms[pass % 3];
    if (shared.count[thread] > 0) {
      atomicAdd(&histogram.sum[thread], Word{shared.high[thread]} << 32 | shared.low[thread]);
      atomicAdd(&histogram.count[thread], shared.count[thread]);
    }
    sync_blocks();
    const Word own = __ldcg(&histogram.sum[thread]);
    const uint32_t count = __ldcg(&histogram.count[thread]);
    if (thread % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x)) {
      // Every block has read this one before the barrier, and adds to it again after the next.
      Histogram& free = job.scratch->histograms[(pass + 2) % 3];
      free.sum[thread] = 0;
      free.count[thread] = 0;
    }
    Word total;
    const Word up_to = sum_up_to_thread(own, total, shared);
    const Word missing = first ? needed(total) : shared.missing;
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
  const auto place = [&](int id) { return place_of(args.logits[id], id, max_key, job.id_bits); };
  const Word last = last_place(
      job, row, shared, pass, place, [](int, Word) { return Word{1}; },
      [&](Word) { return static_cast<Word>(wanted); });
  row.each([&](int id) {
    const Word at = place(id);
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

// One draw among the tokens that the filters leave, by the running sum in the order of ids: blocks, warps of the block
// that holds it, steps of 32 ids of the warp that holds it.
__device__ void draw(const Job& job, const Row& row, Shared& shared, int& pass, const Summary& all) {
  const SampleCuda& args = job.args;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const auto max_key = static_cast<uint32_t>(all.best >> 32);
  const float max = value_of(max_key);
  const auto place = [&](int id) { return place_of(row.value(id), id, max_key, job.id_bits); };
  const auto weight = [&](int id) {
    return static_cast<Word>(sample_weight(row.value(id), max, job.inverse_temperature));
  };
  Word last = ~Word{0};
  if (args.options.top_k > 0 && args.options.top_k < args.V) {
    last = last_place(
        job, row, shared, pass, place, [](int, Word) { return Word{1}; },
        [&](Word) { return static_cast<Word>(args.options.top_k); });
  }
  if (job.top_p_fraction > 0) {
    const Word last_of_k = last;
    const Word last_of_p = last_place(
        job, row, shared, pass, place, [&](int id, Word at) { return at <= last_of_k ? weight(id) : 0; },
        [&](Word total) { return nucleus_weight(job.top_p_fraction, total); });
    last = min(last, last_of_p);
  }
  const auto kept = [&](int id) {
    if (place(id) > last) return Word{0};
    const Word own = weight(id);
    return own >= job.least_weight ? own : 0;
  };

  Word own = 0;
  row.each([&](int id) { own += kept(id); });
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
  Word begin = end - own;
  const Word target = multiply_high(shared.bits, total);
  if (target < begin || target >= end) return;
  for (int first = row.begin; first < row.end; first += kLanes) {
    const int id = first + lane;
    const Word up_to_id = begin + sum_up_to_lane(id < row.end ? kept(id) : 0);
    const uint32_t beyond = __ballot_sync(kAllLanes, target < up_to_id);
    if (beyond != 0) {
      if (lane == __ffs(static_cast<int>(beyond)) - 1) report_chosen(args, shared, id, all);
      return;
    }
    begin = __shfl_sync(kAllLanes, up_to_id, kLanes - 1);
  }
}

// computes   penalty → temperature → top-k → top-p → min-p → one draw, or argmax; log-probabilities     one row
// moves      read 4·V B (and V B of `seen`) once, then from shared memory   bound: latency
// launch     grid = one cluster of 16 blocks, 8 or 1 where the device takes no more, block 1024, smem 12.9 KiB +
// 4·V/blocks needs      V <= 2^23, top_logprobs <= 1024 numerics   weights and their sums in whole numbers: the id of
// the CPU; log-probabilities f32, exponentials within 2^-21 measured   not yet
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

  if (threadIdx.x == 0) {
    shared.position = *args.position + 1;
    shared.bits = draw_bits(args.options.seed, shared.position);
  }
  auto* words = reinterpret_cast<uint32_t*>(job.scratch->histograms);
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < sizeof(Scratch::histograms) / 4;
       i += gridDim.x * kThreads) {
    words[i] = 0;
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
  job.inverse_temperature = inverse_of(args.options.temperature);
  if (args.options.top_p < 1) job.top_p_fraction = std::max<uint64_t>(1, fraction_of(args.options.top_p));
  job.least_weight = least_weight(args.options.min_p);

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
