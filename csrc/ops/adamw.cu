// adamw of ops/adamw.h.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/adamw_blocks_cuda.h"
#include "ops/adamw_kernels.h"

namespace qn {

namespace {

constexpr unsigned kWarp = 32, kEveryLane = 0xffffffffu;
constexpr int kMaxThreads = 320, kMaxWarps = kMaxThreads / kWarp;

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
  float log2_sum[kMaxWarps];
  int live[kMaxWarps], changed_codes[kMaxWarps], saturated[kMaxWarps], any_change[kMaxWarps], largest[kMaxWarps];
  float low[kOctaves], high[kOctaves], centre;
  int moved;
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

// f32 of the row's blocks between the phases: block round · threads + thread belongs to that thread alone, its quads
// `threads` apart, so that a warp's 16-byte accesses meet no bank twice.
struct RowTile {
  float4* quads;
  __device__ int64_t at(int block, int quad) const {
    const int threads = static_cast<int>(blockDim.x);
    return int64_t{(block / threads) * 4 + quad} * threads + block % threads;
  }
  __device__ __forceinline__ void load(float* x, int block) const {
    QN_EACH_OF(4) {
      const float4 quad = quads[at(block, i)];
      x[4 * i] = quad.x;
      x[4 * i + 1] = quad.y;
      x[4 * i + 2] = quad.z;
      x[4 * i + 3] = quad.w;
    }
  }
  __device__ __forceinline__ void store(int block, const float* x) const {
    QN_EACH_OF(4) quads[at(block, i)] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  }
  __device__ float element(int block, int column) const {
    return reinterpret_cast<const float*>(quads + at(block, column / 4))[column % 4];
  }
};

// The mean of log2 v as live_mean() of ops/adamw_moments.h rounds it: 16 lanes of f32, each in the order of the blocks.
// A whole warp.
__device__ float live_mean_in_order(const RowTile& v, int blocks, float dead, int live) {
  const int lane = static_cast<int>(threadIdx.x % 16);
  float sum = 0;
  for (int block = 0; block < blocks; ++block) {
    const float value = v.element(block, lane);
    sum += value > dead ? log2_near(value) : 0.0f;
  }
  double total = 0;
  for (int i = 0; i < 16; ++i) total += static_cast<double>(__shfl_sync(kEveryLane, sum, i));
  return static_cast<float>(total / static_cast<double>(live));
}

struct Centre {
  float value;
  bool moved;
};

// The row's new centre, by a whole warp. The mean matters only for which side of two thresholds it falls on, so an
// estimate in any order settles it, except within `slack` of one: there the mean is taken as the CPU takes it.
//
// slack: |log2 v| <= 110 < 2^7. The CPU's lanes add `blocks` times, each time off by at most 2^-24 of 2^7 per element;
// the estimate adds fewer than 64 times in any chain, and its logarithms are within 4 · 2^-17. The rest is margin.
__device__ Centre next_centre(const RowTile& v, int blocks, float estimated_sum, int live, bool any_change, bool fresh,
                              float old_centre, float dead) {
  float mean = old_centre;
  if (live > 0 && (fresh || any_change)) {
    const float slack = static_cast<float>(blocks + 128) * 0x1p-17f;
    mean = estimated_sum / static_cast<float>(live);
    const float distance = magnitude_of(mean - old_centre);
    const bool doubtful_move = !fresh && magnitude_of(distance - 1.0f) <= slack;
    const bool doubtful_value =
        (fresh || distance > 1.0f) && nearest_quarter(mean - slack) != nearest_quarter(mean + slack);
    if (doubtful_move || doubtful_value) mean = live_mean_in_order(v, blocks, dead, live);
  }
  const bool moved = centre_moves(fresh, any_change, mean, old_centre);
  return {moved ? nearest_quarter(mean) : old_centre, moved};
}

// The whole of ops/adamw.h for one row with nvfp4 or int8 moments.
//
// computes   m, v, u and the weights of a row; then its centre and v's codes; then its level and m's codes
// moves      nvfp4: 3.375 B an element of weights and moments, read and written, and the gradient (2 or 4 B) once
// launch     grid rows, block min(K/16, 320) up to a multiple of 32, smem 128 B a thread and round, two 16-column
//            blocks of f32 (m and v) for each; a thread takes a block of 16 columns a round, codes in 8-byte accesses
// needs      K % 16 == 0, gradients and masters 16-byte, codes 8-byte (int8: 16-byte) aligned
// numerics   the scalar functions of the CPU, nothing contracted: codes, scales, rows and masters are the CPU's bytes
// measured   not yet
template <MomentFormat kFormat, WeightPath kPath>
__global__ void __launch_bounds__(kMaxThreads, 2)
    adamw_packed_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args) {
  extern __shared__ float4 adamw_tile[];
  __shared__ RowShared shared;
  const int blocks = static_cast<int>(args.K / 16), threads = static_cast<int>(blockDim.x);
  const int me = static_cast<int>(threadIdx.x), warps = threads / static_cast<int>(kWarp);
  const int64_t row = args.row_begin + blockIdx.x, first = row * args.K;
  const RowTile tile_m{adamw_tile}, tile_v{adamw_tile + int64_t{(blocks + threads - 1) / threads} * 4 * threads};

  // Moments, update and weights of each block; what the row must know of v.
  const MomentRates rates = moment_rates(args);
  const bool fresh = args.v.scales[first / 16] == 0;
  const float stored_level = args.m.rows[row], stored_centre = args.v.rows[row];
  const float floor_before = exp2_grid(stored_centre - kOctavesBelowCentre);
  const float old_centre = fresh ? kFreshCentre : stored_centre, dead = largest_dead(fresh, old_centre);
  RowTotals totals;
  uint32_t changed = 0;  // bit `round`: v of this thread's block differs from what is stored
  float log2_sum = 0;
  int live = 0;
  for (int block = me, round = 0; block < blocks; block += threads, ++round) {
    const int64_t at = first + int64_t{16} * block;
    const auto old_m = load_packed<kFormat>(args.m.values, args.m.scales, at);
    const auto old_v = load_packed<kFormat>(args.v.values, args.v.scales, at);
    Nvfp4Block codes{};
    if (kPath != WeightPath::kOther || args.storage == Storage::kNvfp4) {
      codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
    }
    float u[16], m[16], v[16];
    load_gradient(u, args, int64_t{blockIdx.x} * args.K + int64_t{16} * block);
    const float m_scale = e4m3_value(old_m.scale) * stored_level, v_scale = e4m3_value(old_v.scale);
    float block_sum = 0;
    bool block_changed = false;
    QN_EACH_OF(16) {
      const float before = old_v.scale == 0 ? 0.0f : exp2_grid(stored_centre + old_v.value(i) * v_scale);
      m[i] = old_m.value(i) * m_scale * square_root(before);  // stored in units of √v
      v[i] = before;
      u[i] = step_moments(m[i], v[i], u[i], rates);
      block_changed |= larger(v[i], floor_before) != before;
      const bool lives = v[i] > dead;
      block_sum += lives ? __log2f(v[i]) : 0.0f;
      live += lives ? 1 : 0;
      totals.update_squares += static_cast<double>(u[i]) * u[i];
    }
    log2_sum += block_sum;
    changed |= static_cast<uint32_t>(block_changed) << round;
    tile_m.store(block, m);
    tile_v.store(block, v);
    if constexpr (kPath == WeightPath::kNvfp4) {
      step_nvfp4_block(args, WeightMode::kNvfp4, at, codes, u, totals);
    } else if constexpr (kPath == WeightPath::kNvfp4Residual) {
      step_nvfp4_block(args, WeightMode::kNvfp4Residual, at, codes, u, totals);
    } else if (args.storage == Storage::kNvfp4) {
      step_nvfp4_block(args, args.mode, at, codes, u, totals);
    } else {
      step_dense_block(args, at, u);
    }
  }
  share_totals(shared, totals);
  log2_sum = warp_sum(log2_sum);
  live = __reduce_add_sync(kEveryLane, live);
  const int any_change = __any_sync(kEveryLane, changed != 0);
  if (me % static_cast<int>(kWarp) == 0) {
    shared.log2_sum[me / kWarp] = log2_sum;
    shared.live[me / kWarp] = live;
    shared.any_change[me / kWarp] = any_change;
  }
  __syncthreads();

  // The centre of the row and the reach of each scale about it.
  if (me < static_cast<int>(kWarp)) {
    float sum = 0;
    int count = 0, any = 0;
    for (int warp = 0; warp < warps; ++warp) {
      sum += shared.log2_sum[warp];
      count += shared.live[warp];
      any |= shared.any_change[warp];
    }
    const Centre next = next_centre(tile_v, blocks, sum, count, any != 0, fresh, old_centre, dead);
    if (me < kOctaves) {
      shared.low[me] = octave_low(next.value, largest_code(kFormat), me);
      shared.high[me] = octave_high(next.value, largest_code(kFormat), me);
    }
    if (me == 0) {
      shared.centre = next.value;
      shared.moved = next.moved;
      args.v.rows[row] = next.value;
      write_row(rows + blockIdx.x, shared);
    }
  }
  __syncthreads();

  // v as it is stored, and m in units of its root.
  const float centre = shared.centre, floor = exp2_grid(centre - kOctavesBelowCentre);
  const bool moved = shared.moved != 0;
  int largest = 0;
  for (int block = me, round = 0; block < blocks; block += threads, ++round) {
    const int64_t at = first + int64_t{16} * block;
    float m[16], v[16];
    tile_v.load(v, block);
    if (moved || (changed >> round & 1) != 0) {
      int least = 0x7fffffff, most = 0;
      QN_EACH_OF(16) {
        const int bits = static_cast<int>(bits_of(larger(v[i], floor)));
        least = min(least, bits);
        most = max(most, bits);
      }
      const uint8_t scale = next_octave(args.v.scales[at / 16], fresh, float_of(static_cast<uint32_t>(least)),
                                        float_of(static_cast<uint32_t>(most)), shared.low, shared.high);
      store_packed(args.v.values, args.v.scales, at, octave_block<kFormat>(args, at, v, centre, scale));
    } else {
      QN_EACH_OF(16) v[i] = larger(v[i], floor);
    }
    tile_m.load(m, block);
    QN_EACH_OF(16) m[i] /= square_root(v[i]);
    tile_m.store(block, m);
    largest = max(largest, static_cast<int>(bits_of(amax_of(m))));
  }
  largest = __reduce_max_sync(kEveryLane, largest);
  if (me % static_cast<int>(kWarp) == 0) shared.largest[me / kWarp] = largest;
  __syncthreads();

  // m as it is stored.
  for (int warp = 0; warp < warps; ++warp) largest = max(largest, shared.largest[warp]);
  const float level = linear_level(float_of(static_cast<uint32_t>(largest)), largest_code(kFormat));
  if (me == 0) args.m.rows[row] = level;
  for (int block = me; block < blocks; block += threads) {
    const int64_t at = first + int64_t{16} * block;
    float m[16];
    tile_m.load(m, block);
    store_packed(args.m.values, args.m.scales, at, linear_block<kFormat>(args, at, m, level));
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
  const int64_t blocks = args.K / 16, row = args.row_begin + blockIdx.x;
  const MomentRates rates = moment_rates(args);
  RowTotals totals;
  for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) {
    const int64_t at = row * args.K + 16 * block;
    const Nvfp4Block codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
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
    step_nvfp4_block(args, args.mode, at, codes, u, totals);
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

// Threads for `items` a row: as few rounds as kMaxThreads allows, evenly filled.
unsigned threads_of(int64_t items) {
  const int64_t rounds = (items + kMaxThreads - 1) / kMaxThreads, even = (items + rounds - 1) / rounds;
  return static_cast<unsigned>((even + kWarp - 1) / kWarp * kWarp);
}

template <MomentFormat kFormat, WeightPath kPath>
void launch_packed(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  const int64_t blocks = args.K / 16;
  const unsigned threads = threads_of(blocks);
  const int64_t bytes = (blocks + threads - 1) / threads * threads * 2 * 16 * static_cast<int64_t>(sizeof(float));
  // A thread block gets more than 48 KiB only when asked to.
  if (bytes > 40 * 1024) {
    int device = 0, most = 0;
    QN_CUDA_CHECK(cudaGetDevice(&device));
    QN_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (bytes + static_cast<int64_t>(sizeof(RowShared)) > most) {
      fail(Code::kUnsupported,
           "AdamW with %s moments on this CUDA device takes rows of about %d columns but a parameter has %lld",
           kFormat == MomentFormat::kNvfp4 ? "nvfp4" : "int8", most / 128 * 16, (long long)args.K);
    }
    QN_CUDA_CHECK(cudaFuncSetAttribute(adamw_packed_kernel<kFormat, kPath>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(bytes)));
  }
  adamw_packed_kernel<kFormat, kPath>
      <<<static_cast<unsigned>(args.row_count), threads, static_cast<size_t>(bytes), stream>>>(rows, args);
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
    adamw_plain_kernel<<<grid, threads_of(args.K / 16), 0, cuda_stream>>>(rows, args);
  } else {
    adamw_dense_kernel<<<grid, threads_of(args.K), 0, cuda_stream>>>(rows, args);
  }
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
