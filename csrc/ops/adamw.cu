// adamw of ops/adamw.h.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/adamw_kernels.h"
#include "ops/adamw_packed_cuda.h"

namespace qn {

namespace {

constexpr unsigned kWarp = 32, kEveryLane = 0xffffffffu;
constexpr int kMaxThreads = 320, kMaxWarps = kMaxThreads / kWarp;
// Of the packed kernel: one thread block an SM, whose threads have about 96 registers.
constexpr int kPackedThreads = 640;
// How many warps may share a row; each such group of a thread block has a named barrier of its own.
constexpr unsigned kMaxGroupWarps = 4;

// Weights with a kernel of their own, whose branches on the mode are gone; kOther takes every kind of weight.
enum class WeightPath { kNvfp4, kNvfp4Residual, kOther };

template <typename T>
__device__ T warp_sum(T x) {
  for (unsigned step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kEveryLane, x, step);
  return x;
}

// What the warps of a thread block tell each other about their row.
struct RowShared {
  double update_squares[kMaxWarps];
  int changed_codes[kMaxWarps], saturated[kMaxWarps];
};

// All threads; the totals of each warp into `shared`.
__device__ void share_totals(RowShared& shared, const RowTotals& totals) {
  const unsigned warp = threadIdx.x / kWarp;
  const double squares = warp_sum(totals.update_squares);
  const int changed_codes = __reduce_add_sync(kEveryLane, totals.changed_codes);
  const int saturated = __reduce_add_sync(kEveryLane, totals.saturated);
  if (threadIdx.x % kWarp != 0) return;
  shared.update_squares[warp] = squares;
  shared.changed_codes[warp] = changed_codes;
  shared.saturated[warp] = saturated;
}
// One thread, after a barrier.
__device__ void write_row(AdamwRow* row, const RowShared& shared) {
  AdamwRow result;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
    result.update_squares += shared.update_squares[warp];
    result.changed_codes += shared.changed_codes[warp];
    result.saturated += shared.saturated[warp];
  }
  *row = result;
}

// A weight in NVFP4 of any mode.
__device__ __forceinline__ void step_nvfp4_weight(const AdamwArgs& args, int64_t at, Nvfp4Block codes, const float* u,
                                                  const BlockWords& words, RowTotals& totals) {
  const Nvfp4Block before = codes;
  if (args.mode == WeightMode::kNvfp4) {
    step_weight_block(args, codes, u, words, totals.saturated);
  } else {
    step_nearest_block(args, args.mode, at, codes, u, words, totals.saturated);
  }
  store_packed(args.codes, args.scales, at, codes);
  totals.changed_codes += count_changes(codes, before);
}
template <WeightPath kPath>
__device__ __forceinline__ void step_any_weight(const AdamwArgs& args, const TableLane& tables, int64_t at,
                                                Nvfp4Block& codes, const float* u, const BlockWords& words,
                                                RowTotals& totals) {
  if constexpr (kPath == WeightPath::kOther) {
    if (args.storage != Storage::kNvfp4) return step_dense_block(args, at, u);
  }
  const Nvfp4Block before = codes;
  if constexpr (kPath == WeightPath::kNvfp4) {
    step_weight_words(args, tables, codes, u, words, totals.saturated);
  } else if constexpr (kPath == WeightPath::kNvfp4Residual) {
    step_nearest_block(args, WeightMode::kNvfp4Residual, at, codes, u, words, totals.saturated);
  } else {
    return step_nvfp4_weight(args, at, codes, u, words, totals);
  }
  store_packed(args.codes, args.scales, at, codes);
  totals.changed_codes += count_changes(codes, before);
}

// The moments of a block in a row that stored nothing yet; u f32[16] out.
template <MomentFormat kFormat>
__device__ __noinline__ void fresh_block(const AdamwArgs& args, const PackedRow& row, int64_t at, int64_t offset,
                                         float centre, bool stores, float* u) {
  float g[16], m[16], v[16];
  load_gradient(g, args, offset);
  QN_EACH_OF(16) {
    const FreshElement e = fresh_element(row, g[i]);
    m[i] = e.m;
    v[i] = e.v;
    u[i] = e.u;
  }
  if (!stores) return;
  const BlockWords words = block_words(args, at);
  uint32_t m_codes[16], v_codes[16], first[16], second[16];
  QN_EACH_OF(16) {
    first[i] = first_draw(words.w[i]);
    second[i] = second_draw(words.w[i]);
  }
  uint8_t m_scale = 0, v_scale = 0;
  store_fresh<kFormat>(m_codes, m_scale, v_codes, v_scale, centre, m, v, first, second);
  store_packed(args.m.values, args.m.scales, at, packed_block<kFormat>(m_codes, m_scale));
  store_packed(args.v.values, args.v.scales, at, packed_block<kFormat>(v_codes, v_scale));
}
// Of every `stride`th block of such a row, from `block` on.
__device__ __noinline__ CentreSum fresh_sum(const AdamwArgs& args, const PackedRow& row, int64_t offset, int64_t block,
                                            int64_t stride) {
  CentreSum sum;
  for (; block < args.K / 16; block += stride) {
    float g[16];
    load_gradient(g, args, offset + 16 * block);
    QN_EACH_OF(16) {
      const float v = fresh_element(row, g[i]).v;
      sum.eighths += v > kLargestDead ? fresh_eighths(v) : 0;
      sum.live += v > kLargestDead ? 1 : 0;
    }
  }
  return sum;
}

// The same of a row that has moments; returns Σ u².
template <MomentFormat kFormat, bool kBf16>
__device__ __forceinline__ float step_moment_block(const AdamwArgs& args, const PackedRow& row, const TableLane& tables,
                                                   int64_t at, int64_t offset, float* u, BlockWords& words,
                                                   CentreSum& sum) {
  auto m = load_packed<kFormat>(args.m.values, args.m.scales, at);
  auto v = load_packed<kFormat>(args.v.values, args.v.scales, at);
  const Gradient<kBf16> g(args, offset);
  float squares = 0;
  if constexpr (kFormat == MomentFormat::kNvfp4) {
    SteppedBlock stepped;
    add_words(sum, v, e4m3_value(v.scale));
    squares = step_elements(row, tables, m, v, g, u, stepped);
    store_moments(row, tables, m, v, stepped, args, at, words);
  } else {
    uint32_t m_codes[16], v_codes[16], first[16], second[16];
    float gradient[16];
    words = block_words(args, at);
    unpack_codes(m_codes, m);
    unpack_codes(v_codes, v);
    QN_EACH_OF(16) {
      gradient[i] = g[i];
      first[i] = first_draw(words.w[i]);
      second[i] = second_draw(words.w[i]);
    }
    add_block<kFormat>(sum, v_codes, e4m3_value(v.scale));
    step_packed_moments<kFormat>(row, m_codes, m.scale, v_codes, v.scale, gradient, u, first, second);
    m = packed_block<kFormat>(m_codes, m.scale);
    v = packed_block<kFormat>(v_codes, v.scale);
    QN_EACH_OF(16) squares = fused(u[i], u[i], squares);
  }
  store_packed(args.m.values, args.m.scales, at, m);
  store_packed(args.v.values, args.v.scales, at, v);
  return squares;
}

// Of NVFP4 weights and moments, into L2.
template <bool kBf16>
__device__ __forceinline__ void prefetch_block(const AdamwArgs& args, int64_t at, int64_t offset) {
  const auto fetch = [](const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); };
  const int64_t block = at / 16;
  fetch(kBf16 ? static_cast<const void*>(args.g_bf16 + offset) : static_cast<const void*>(args.g + offset));
  fetch(static_cast<const uint2*>(args.m.values) + block);
  fetch(static_cast<const uint2*>(args.v.values) + block);
  fetch(args.codes + 8 * block);
  fetch(args.m.scales + block);
  fetch(args.v.scales + block);
  fetch(args.scales + block);
}

// --- Warps that share a row -----------------------------------------------------------------------------------------

// The 1, 2 or 4 warps of a thread block that take the blocks of one row in turns.
struct Group {
  unsigned warps, index, thread;  // index: of the group in its thread block
  __device__ explicit Group(unsigned count)
      : warps(count), index(threadIdx.x / (kWarp * count)), thread(threadIdx.x % (kWarp * count)) {}
  __device__ bool leads() const { return thread == 0; }
  __device__ void wait() const {
    if (warps == 1) return __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"r"(index + 1), "r"(warps * kWarp) : "memory");
  }
};

// What a warp tells its group about the row; one place for each warp of the thread block.
struct GroupTotals {
  RowTotals row;
  CentreSum centre;
};
__device__ RowTotals warp_total(const RowTotals& totals) {
  RowTotals sum;
  sum.update_squares = warp_sum(totals.update_squares);
  sum.changed_codes = __reduce_add_sync(kEveryLane, totals.changed_codes);
  sum.saturated = __reduce_add_sync(kEveryLane, totals.saturated);
  return sum;
}
__device__ CentreSum warp_total(const CentreSum& sum) {
  CentreSum total;
  total.eighths = __reduce_add_sync(kEveryLane, sum.eighths);
  total.live = __reduce_add_sync(kEveryLane, sum.live);
  return total;
}
// Every thread of the group; `places` of its warps. The group waits.
__device__ GroupTotals group_total(const Group& group, GroupTotals* places, const RowTotals& row,
                                   const CentreSum& centre) {
  GroupTotals total{warp_total(row), warp_total(centre)};
  if (group.warps == 1) return total;
  if (group.thread % kWarp == 0) places[group.thread / kWarp] = total;
  group.wait();
  total = places[0];
  for (unsigned warp = 1; warp < group.warps; ++warp) {
    total.row.update_squares += places[warp].row.update_squares;
    total.row.changed_codes += places[warp].row.changed_codes;
    total.row.saturated += places[warp].row.saturated;
    total.centre.eighths += places[warp].centre.eighths;
    total.centre.live += places[warp].centre.live;
  }
  return total;
}

// Whether a step was stopped before this launch. Its rows then did nothing; every block looks at the same flag, which
// no launch changes while this one runs.
__device__ bool stopped(AdamwRow* rows, const AdamwArgs& args) {
  if (args.stop == nullptr || *args.stop == 0) return false;
  if (threadIdx.x == 0) {
    for (int64_t index = blockIdx.x; index < args.row_count; index += gridDim.x) rows[index] = AdamwRow{};
  }
  return true;
}

// The whole of ops/adamw.h for rows with nvfp4 or int8 moments.
//
// computes   m, v, u and the weights of each block of 16 by itself; then the row's totals and its next centre
// moves      nvfp4: 3.375 B an element of weights and moments, read and written, and the gradient (2 or 4 B) once
// launch     grid min(SMs, groups of warps for the rows), block 640, smem 104 KiB with 72 of tables; a group of 1, 2 or
// 4 warps
//            goes from row to row, a thread takes a block of 16 columns a round, codes in 8-byte accesses
// needs      K % 16 == 0, gradients and masters 16-byte, codes 8-byte (int8: 16-byte) aligned
// numerics   the functions of ops/adamw_packed.h: codes, scales, rows and masters are the CPU's bytes
// measured   H200 N=9728 K=2560, all NVFP4, bf16 gradient: b=.001 446 GB/s, 10 % of copy (4277); b=.05 267 GB/s, 6 %
//            of 4270; weights with a residual, b=.001: 400 GB/s, 9 % of 4270; 2026-11-21
template <MomentFormat kFormat, WeightPath kPath, bool kBf16, int kThreads, bool kPrefetch>
__global__ void __launch_bounds__(kThreads, 1)
    adamw_packed_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args, unsigned group_warps) {
  __shared__ GroupTotals totals_of[kThreads / kWarp], fresh_of[kThreads / kWarp];
  if (stopped(rows, args)) return;
  fill_tables();
  __syncthreads();
  const Group group(group_warps);
  const TableLane tables(threadIdx.x % kWarp);
  const unsigned groups = kThreads / kWarp / group_warps, stride = group_warps * kWarp;
  const int64_t blocks = args.K / 16;
  for (int64_t index = blockIdx.x + int64_t{gridDim.x} * group.index; index < args.row_count;
       index += int64_t{gridDim.x} * groups) {
    const int64_t row = args.row_begin + index, first = row * args.K;
    const bool fresh = args.v.scales[first / 16] == 0;
    const PackedRow constants = packed_row(args, args.v.rows[row], args.m.rows[row]);
    // Nobody stores what another warp still has to read, nor totals that the last row's leader does.
    group.wait();
    CentreSum sum;
    if (fresh) {
      sum = fresh_sum(args, constants, index * args.K, group.thread, stride);
      sum = group_total(group, fresh_of + group.index * group_warps, RowTotals{}, sum).centre;
    }
    const bool stores = !fresh || sum.live > 0;
    const float centre = fresh && stores ? fresh_centre(sum.eighths, sum.live) : 0.0f;
    RowTotals totals;
    for (int64_t block = group.thread; block < blocks; block += stride) {
      const int64_t at = first + 16 * block, offset = index * args.K + 16 * block;
      if (kPrefetch && block + stride < blocks) prefetch_block<kBf16>(args, at + 16 * stride, offset + 16 * stride);
      Nvfp4Block codes{};
      if (kPath != WeightPath::kOther || args.storage == Storage::kNvfp4) {
        codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
      }
      float u[16], squares = 0;
      BlockWords words;
      if (fresh) {
        float local[16];
        fresh_block<kFormat>(args, constants, at, offset, centre, stores, local);
        QN_EACH_OF(16) u[i] = local[i];
        QN_EACH_OF(16) squares = fused(u[i], u[i], squares);
        words = block_words(args, at);
      } else {
        squares = step_moment_block<kFormat, kBf16>(args, constants, tables, at, offset, u, words, sum);
      }
      totals.update_squares += static_cast<double>(squares);
      step_any_weight<kPath>(args, tables, at, codes, u, words, totals);
    }
    const GroupTotals total = group_total(group, totals_of + group.index * group_warps, totals, sum);
    if (!group.leads()) continue;
    rows[index] = {total.row.update_squares, total.row.changed_codes, total.row.saturated};
    if (!stores) continue;
    args.m.rows[row] = kMomentLevel;
    if (fresh) {
      args.v.rows[row] = centre;
    } else if (args.b != 0) {
      args.v.rows[row] = next_row(constants, total.centre.eighths, total.centre.live);
    }
  }
}

// computes   a row with bf16 or f32 moments and weights in NVFP4: nothing is shared by a row but its totals
// moves      weights and moments read and written once, the gradient read once
// launch     grid rows, block min(K/16, 320) up to a multiple of 32, smem 0 (dynamic); a block of 16 columns a thread
// needs      K % 16 == 0; moments, gradients and masters 16-byte, codes 8-byte aligned
// numerics   the scalar functions of the CPU: its bytes
// measured   not yet
__global__ void __launch_bounds__(kMaxThreads)
    adamw_plain_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args) {
  __shared__ RowShared shared;
  if (stopped(rows, args)) return;
  const int64_t blocks = args.K / 16, row = args.row_begin + blockIdx.x;
  const MomentRates rates = moment_rates(args);
  RowTotals totals;
  for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) {
    const int64_t at = row * args.K + 16 * block;
    Nvfp4Block codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
    float u[16], m[16], v[16];
    load_gradient(u, args, int64_t{blockIdx.x} * args.K + 16 * block);
    load_plain(m, args.moments, args.m.values, at);
    load_plain(v, args.moments, args.v.values, at);
    QN_EACH_OF(16) {
      u[i] = step_moments(m[i], v[i], u[i], rates);
      totals.update_squares += static_cast<double>(u[i]) * u[i];
    }
    store_plain(args, args.v.values, at, v, RandomStream::kSecondMoment);
    store_plain(args, args.m.values, at, m, RandomStream::kFirstMoment);
    step_nvfp4_weight(args, at, codes, u, block_words(args, at), totals);
  }
  share_totals(shared, totals);
  __syncthreads();
  if (threadIdx.x == 0) write_row(rows + blockIdx.x, shared);
}

// computes   a row of dense weights with bf16 or f32 moments, any K: vectors of norms
// moves      weights and moments read and written once, the gradient read once
// launch     grid rows, block min(K, 256) up to a multiple of 32; an element a thread and round
// numerics   the scalar functions of the CPU: its bytes
// measured   not yet
__global__ void __launch_bounds__(kMaxThreads)
    adamw_dense_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args) {
  __shared__ RowShared shared;
  if (stopped(rows, args)) return;
  const int64_t row = args.row_begin + blockIdx.x;
  const MomentRates rates = moment_rates(args);
  RowTotals totals;
  for (int64_t column = threadIdx.x; column < args.K; column += blockDim.x) {
    const int64_t element = row * args.K + column, from = int64_t{blockIdx.x} * args.K + column;
    const float g = args.g_bf16 != nullptr ? bf16_value(args.g_bf16[from]) : args.g[from];
    const float u = step_plain_element(args, rates, element, g);
    totals.update_squares += static_cast<double>(u) * u;
    const uint32_t word = args.storage == Storage::kF32 ? 0 : element_word(args, element, RandomStream::kWeight);
    step_dense_element(args, element, u, word);
  }
  share_totals(shared, totals);
  __syncthreads();
  if (threadIdx.x == 0) write_row(rows + blockIdx.x, shared);
}

// --------------------------------------------------------------------------------------------------------------------

// Threads for `items` a row: as few rounds as `most` allows, evenly filled.
unsigned threads_of(int64_t items, int64_t most) {
  const int64_t rounds = (items + most - 1) / most, even = (items + rounds - 1) / rounds;
  return static_cast<unsigned>((even + kWarp - 1) / kWarp * kWarp);
}

template <MomentFormat kFormat, WeightPath kPath, bool kBf16, int kThreads, bool kPrefetch>
void launch_threads(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  int device = 0, processors = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  constexpr int64_t kWarps = kThreads / kWarp;
  const int64_t rounds = (args.K / 16 + kWarp - 1) / kWarp;
  // A row is shared while that finds work for idle warps.
  unsigned group = 1;
  while (group < kMaxGroupWarps && args.row_count * group * 2 <= kWarps * processors && group * 2 <= rounds) group *= 2;
  if (args.tuning.group != 0) group = args.tuning.group;
  // Rows go to every processor before a second one goes to any.
  const auto grid = static_cast<unsigned>(args.row_count < processors ? args.row_count : processors);
  const auto kernel = adamw_packed_kernel<kFormat, kPath, kBf16, kThreads, kPrefetch>;
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(rows, args, group);
}
template <MomentFormat kFormat, WeightPath kPath, bool kBf16>
void launch_packed(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  if constexpr (kFormat == MomentFormat::kNvfp4 && kPath == WeightPath::kNvfp4 && kBf16) {
    const unsigned threads = args.tuning.threads;
    if (args.tuning.prefetch) {
      if (threads == 512) return launch_threads<kFormat, kPath, kBf16, 512, true>(rows, args, stream);
      if (threads == 768) return launch_threads<kFormat, kPath, kBf16, 768, true>(rows, args, stream);
      return launch_threads<kFormat, kPath, kBf16, kPackedThreads, true>(rows, args, stream);
    }
    if (threads == 512) return launch_threads<kFormat, kPath, kBf16, 512, false>(rows, args, stream);
    if (threads == 768) return launch_threads<kFormat, kPath, kBf16, 768, false>(rows, args, stream);
  }
  launch_threads<kFormat, kPath, kBf16, kPackedThreads, false>(rows, args, stream);
}
template <MomentFormat kFormat, WeightPath kPath>
void launch_packed(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  if (args.g_bf16 != nullptr) {
    launch_packed<kFormat, kPath, true>(rows, args, stream);
  } else {
    launch_packed<kFormat, kPath, false>(rows, args, stream);
  }
}

void launch_nvfp4_moments(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  constexpr MomentFormat kFormat = MomentFormat::kNvfp4;
  if (args.storage == Storage::kNvfp4 && args.mode == WeightMode::kNvfp4) {
    launch_packed<kFormat, WeightPath::kNvfp4>(rows, args, stream);
  } else if (args.storage == Storage::kNvfp4 && args.mode == WeightMode::kNvfp4Residual) {
    launch_packed<kFormat, WeightPath::kNvfp4Residual>(rows, args, stream);
  } else {
    launch_packed<kFormat, WeightPath::kOther>(rows, args, stream);
  }
}

}  // namespace

void adamw_cuda(AdamwRow* rows, const AdamwArgs& args, CudaStream stream) {
  check_adamw_columns(args.moments, args.storage == Storage::kNvfp4, args.K);
  if (args.row_count == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto grid = static_cast<unsigned>(args.row_count);
  if (args.moments == MomentFormat::kNvfp4) {
    launch_nvfp4_moments(rows, args, cuda_stream);
  } else if (args.moments == MomentFormat::kInt8) {
    launch_packed<MomentFormat::kInt8, WeightPath::kOther>(rows, args, cuda_stream);
  } else if (args.storage == Storage::kNvfp4) {
    adamw_plain_kernel<<<grid, threads_of(args.K / 16, kMaxThreads), 0, cuda_stream>>>(rows, args);
  } else {
    adamw_dense_kernel<<<grid, threads_of(args.K, kMaxThreads), 0, cuda_stream>>>(rows, args);
  }
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
