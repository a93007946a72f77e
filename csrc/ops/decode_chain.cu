// Longer than most, because the kernel's two walks over the same units, copying and multiplying, must be read together.
#include "ops/decode_chain.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/async_cuda.h"
#include "ops/bf16x8_cuda.h"
#include "ops/message_cuda.h"
#include "ops/nvfp4_unit_cuda.h"
#include "ops/swiglu_cuda.h"

namespace qn {

namespace {

// A tile is eight rows: of one matrix eight outputs, or with swiglu four, whose rows of gate and of up take turns. Its
// units are dealt to the block's warps in turn, from a stage's first on.
using Unit = UnitOf<8, 4>;
constexpr int kMostUnits = 96;  // whose sums wait for the store

struct Kernel {
  const ChainStage* stages;
  const int32_t* epoch;
  const uint16_t* x;
  uint16_t* h;
  float norm_eps;
  int count, launch, launches, H;
  int own_bytes, x_bytes;
};

template <int kWarpCount, int kSlotCount, bool kWithCopies = true, bool kWithProducts = true>
struct LayoutOf {
  static constexpr int kWarps = kWarpCount, kThreads = 32 * kWarps, kSlots = kSlotCount;
  static constexpr bool kCopies = kWithCopies, kProducts = kWithProducts;
};

// Shared memory after the rings and before the block's own h, x and the stages.
template <int kWarps>
struct Shared {
  uint8_t zeros[kZeroBytes<Unit>];
  float squares[kWarps];
  // Twice, because a store may lag behind the next sums.
  float sums[2][kMostUnits * Unit::kRows];
};

// The first of `all` tiles that belong to a block.
__device__ __forceinline__ int first_tile(uint32_t block, int all) {
  return static_cast<int>(uint64_t{block} * static_cast<uint32_t>(all) / gridDim.x);
}

// A stage as this block has it.
__device__ __forceinline__ ChainStage block_stage(const ChainStage& from, int warps) {
  ChainStage stage = from;
  const int all = stage.ends[kChainMatrices - 1], units = stage.K / Unit::kColumns;
  stage.first = first_tile(blockIdx.x, all);
  stage.tiles = first_tile(blockIdx.x + 1, all) - stage.first;
  stage.step_tiles = static_cast<uint8_t>(warps / units);
  stage.step_units = static_cast<uint8_t>(warps % units);
  stage.inverse_units = (1 << 16) / units + 1;
  return stage;
}

// A warp's first unit of a stage.
struct FirstUnit {
  int tile, k;
  __device__ __forceinline__ FirstUnit(const ChainStage& stage, int warp)
      : tile(warp * stage.inverse_units >> 16), k(warp - tile * (stage.K / Unit::kColumns)) {}
};

// Which unit a warp copies next: of stage after stage, tile after tile. Lanes copy 16 bytes of two rows' codes at a
// time; the first 16 lanes the eight rows' scales.
struct Copies {
  const ChainStage* stages;
  int count, warp, lane;
  uint32_t slots;
  int stage = -1, tile = 0, k = 0;
  int units = 0, step_tiles = 0, step_units = 0;  // of the stage
  int tiles = 0, end = 0;                         // of the stage; of those that lie in one matrix
  int row_bytes = 0, copy_step = 0, tile_bytes = 0;
  const uint8_t *codes = nullptr, *scales = nullptr;  // of the lane, as if the block's first tile were in this matrix

  __device__ Copies(const ChainStage* stages, int count, uint32_t slots, int warp, int lane)
      : stages(stages), count(count), warp(warp), lane(lane), slots(slots) {
    find();
  }

  // The unit, where its tile is not in the matrix of the one before it.
  __device__ __forceinline__ void find() {
    while (tile >= tiles) {
      if (++stage >= count) return;
      const ChainStage& s = stages[stage];
      const FirstUnit unit(s, warp);
      tile = unit.tile;
      k = unit.k;
      units = s.K / Unit::kColumns;
      step_tiles = s.step_tiles;
      step_units = s.step_units;
      tiles = s.tiles;
      row_bytes = s.K / 2;
    }
    const ChainStage& s = stages[stage];
    const int pairs = s.swiglu ? 2 : 1, row = lane / Unit::kRowLanes, scales_row = lane / Unit::kScaleLanes;
    const int at = s.first + tile;
    const int matrix = s.swiglu ? 0 : (at >= s.ends[0] ? 1 : 0) + (at >= s.ends[1] ? 1 : 0);
    const int first = s.first - (matrix > 0 ? s.ends[matrix - 1] : 0);
    end = s.swiglu ? tiles : min(tiles, s.ends[matrix] - s.first);
    copy_step = Unit::kCopyRows / pairs * row_bytes;
    tile_bytes = Unit::kRows / pairs * row_bytes;
    const int64_t bytes = int64_t{first} * tile_bytes;
    codes = s.codes[s.swiglu ? row % 2 : matrix] + bytes + row / pairs * row_bytes + lane % Unit::kRowLanes * 16;
    scales = s.scales[s.swiglu ? scales_row % 2 : matrix] + bytes / 8 + scales_row / pairs * (row_bytes / 8) +
             lane % Unit::kScaleLanes * 16;
  }

  // To the slot at `slot` bytes. One group of copies in any case.
  template <bool kCopies>
  __device__ __forceinline__ void copy_next(int slot) {
    if (stage < count) {
      if constexpr (kCopies) {
        const int64_t offset = int64_t{tile} * tile_bytes + k * Unit::kRowBytes;
        const uint32_t to = slots + slot;
        const uint32_t codes_to = to + Unit::piece_at(lane / Unit::kRowLanes, lane % Unit::kRowLanes);
        const uint8_t* from = codes + offset;
#pragma unroll
        for (int i = 0; i < Unit::kRows / Unit::kCopyRows; ++i) {
          // The permutation of pieces repeats after two rows.
          copy_async16(codes_to + i * Unit::kCopyRows * Unit::kRowBytes, from, true);
          from += copy_step;
        }
        if (lane < Unit::kRows * Unit::kScaleLanes) {
          copy_async16(to + Unit::kScalesAt + lane * 16, scales + offset / 8, true);
        }
      }
      k += step_units;
      tile += step_tiles;
      if (k >= units) {
        k -= units;
        ++tile;
      }
      if (tile >= end) find();
    }
    commit_copies();
  }
};

template <typename Layout>
struct Block {
  static constexpr int kThreads = Layout::kThreads, kWarps = Layout::kWarps;
  static constexpr int kFours = 5;  // of x that a thread waits for at once
  static_assert(kFours * kThreads * 4 >= 8192);

  const Kernel& p;
  Shared<kWarps>& shared;
  uint16_t* own;  // h of the block's outputs
  uint8_t* x;
  const ChainStage* stages;
  uint32_t first_tag;  // of this launch
  int thread, warp, lane;
  int half = 0;

  // The bits of fours first, first + kThreads, … of x, once they are there.
  __device__ __forceinline__ void wait_fours(uint2 (&bits)[kFours], const ChainStage& stage, int first) const {
    const int fours = stage.K / 4;
    if (!stage.source) {
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const int four = first + i * kThreads;
        bits[i] = four < fours ? __ldcg(reinterpret_cast<const uint2*>(p.x) + four) : uint2{0, 0};
      }
      return;
    }
    const uint32_t tag = first_tag + static_cast<uint32_t>(stage.source_stage);
    TwoMessages words[kFours];
    uint32_t missing = 0;
#pragma unroll
    for (int i = 0; i < kFours; ++i) missing |= first + i * kThreads < fours ? 1u << i : 0;
    const uint32_t wanted = missing;
    for (int polls = 0; missing != 0; ++polls) {
      if (polls > kMostPolls) __trap();
#pragma unroll
      for (int i = 0; i < kFours; ++i)
        words[i].load(stage.source + 2 * (first + i * kThreads), (missing >> i & 1) != 0);
#pragma unroll
      for (int i = 0; i < kFours; ++i) missing &= words[i].have(tag) ? ~(1u << i) : ~0u;
    }
#pragma unroll
    for (int i = 0; i < kFours; ++i) bits[i] = (wanted >> i & 1) != 0 ? words[i].bits() : uint2{0, 0};
  }

  __device__ __forceinline__ float inverse_rms(const uint2 (&bits)[kFours], int K) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t pair = j == 0 ? bits[i].x : bits[i].y;
        const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
        sum = fmaf(high, high, fmaf(low, low, sum));
      }
    }
    sum = reduce_lanes<32>(sum, AddLanes{});
    if (lane == 0) shared.squares[warp] = sum;
    __syncthreads();
    sum = shared.squares[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum += shared.squares[i];
    return 1.0f / sqrtf(sum / static_cast<float>(K) + p.norm_eps);
  }

  // Four columns of x; neighbouring lanes have neighbouring fours, all lanes of a warp one.
  __device__ __forceinline__ void stage_four(int four, const uint2& v) {
    const bool second = four % 2 != 0;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, second ? v.x : v.y, 1);
    const uint32_t low = second ? other : v.x, high = second ? v.y : other;
    *reinterpret_cast<uint2*>(x + token_eight_at<Unit>(four / 2) + four % 2 * 16) = {
        scale_x(__byte_perm(low, high, 0x5410)), scale_x(__byte_perm(low, high, 0x7632))};
  }

  __device__ __forceinline__ void stage_x(const ChainStage& stage) {
    const int fours = stage.K / 4;
    uint2 bits[kFours];
    if (stage.norm) {
      const auto* const norm = reinterpret_cast<const float4*>(stage.norm);
      float4 weights[2] = {};  // as far as most rows go, on their way while x is
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (thread + i * kThreads < fours) weights[i] = norm[thread + i * kThreads];
      wait_fours(bits, stage, thread);
      const float inverse = inverse_rms(bits, stage.K);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const int four = thread + i * kThreads;
        if (four >= fours) break;
        const float4 w = i < 2 ? weights[i] : norm[four];
        const auto scaled = [&](uint32_t pair, float low, float high) {
          return f32_to_bf16x2(__uint_as_float(pair << 16) * inverse * low,
                               __uint_as_float(pair & 0xffff0000u) * inverse * high);
        };
        stage_four(four, {scaled(bits[i].x, w.x, w.y), scaled(bits[i].y, w.z, w.w)});
      }
    } else {
      for (int first = thread; first < fours; first += kFours * kThreads) {
        wait_fours(bits, stage, first);
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
          const int four = first + i * kThreads;
          if (four < fours) stage_four(four, bits[i]);
        }
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ float row_sum(const float* sums, int units) const {
    float sum = sums[0];
#pragma unroll 4
    for (int i = 1; i < units; ++i) sum += sums[i * Unit::kRows];
    return sum;
  }

  // Output i of the block, where the sums of its tile's units are at `sums`.
  __device__ __forceinline__ float output(const ChainStage& stage, int i, const float* sums) {
    const int units = stage.K / Unit::kColumns;
    if (stage.swiglu) {
      const float gate = row_sum(sums + i % 4 * 2, units) * stage.factors[0];
      const float up = row_sum(sums + i % 4 * 2 + 1, units) * stage.factors[1];
      return swiglu_value(bf16_to_f32(f32_to_bf16(gate)), bf16_to_f32(f32_to_bf16(up)));
    }
    const int tile = stage.first + i / 8, matrix = (tile >= stage.ends[0] ? 1 : 0) + (tile >= stage.ends[1] ? 1 : 0);
    float value = row_sum(sums + i % 8, units) * stage.factors[matrix];
    if (stage.accumulate) {
      value += bf16_to_f32(own[i]);
      own[i] = f32_to_bf16(value);
    }
    return value;
  }

  // The outputs of the block's tiles [first, last) of the stage.
  __device__ __forceinline__ void store(const ChainStage& stage, int index, int first, int last) {
    const int log_rows = stage.swiglu ? 2 : 3, units = stage.K / Unit::kColumns;
    for (int i = (first << log_rows) + thread; i - lane < last << log_rows; i += kThreads) {
      const bool exists = i < last << log_rows;
      const float* const sums = shared.sums[half] + ((i >> log_rows) - first) * units * Unit::kRows;
      const float value = exists ? output(stage, i, sums) : 0.0f;
      const float after = __shfl_down_sync(0xffffffffu, value, 1);
      if (!exists) continue;
      const int at = (stage.first << log_rows) + i;
      if (stage.messages && i % 2 == 0) {
        store_message(stage.messages + at / 2, f32_to_bf16x2(value, after), first_tag + static_cast<uint32_t>(index));
      }
      if (!stage.y) continue;
      if (stage.y_f32) {
        static_cast<float*>(stage.y)[at] = value;
      } else {
        static_cast<uint16_t*>(stage.y)[at] = f32_to_bf16(value);
      }
    }
  }

  __device__ __forceinline__ void run(uint32_t slots) {
    const int g = lane / 4, q = lane % 4;
    // The lanes 4g + q of columns g of b that belong to other lanes than q read zeros.
    const bool reads_x = g / 2 == q;
    const uint8_t* const lane_x = reads_x ? x + q * 32 + g % 2 * 16 : shared.zeros + (g / 2 + 2) % 4 * 32;
    const int x_unit_bytes = reads_x ? Unit::kXBytes : 0;
    Copies copies(stages, p.count, slots, warp, lane);
#pragma unroll 1
    for (int i = 0; i < Layout::kSlots; ++i) copies.template copy_next<Layout::kCopies>(i * Unit::kBytes);
    int slot = 0;
#pragma unroll 1
    for (int index = 0; index < p.count; ++index) {
      const ChainStage& stage = stages[index];
      const int units = stage.K / Unit::kColumns, pass_tiles = kMostUnits / units, step = stage.step_units;
      int i = warp, k = FirstUnit(stage, warp).k;  // the warp's next unit, of the block and of its tile
      stage_x(stage);
#pragma unroll 1
      for (int first = 0; first < stage.tiles; first += pass_tiles) {
        const int last = min(stage.tiles, first + pass_tiles);
#pragma unroll 1
        for (; i < last * units; i += kWarps) {
          wait_copies<Layout::kSlots - 1>();
          __syncwarp();
          const uint32_t unit = slots + slot;
          uint4 codes[Unit::kChunks];
          uint32_t scales[Unit::kChunks / 2];
#pragma unroll
          for (int j = 0; j < Unit::kChunks; ++j)
            codes[j] = load_shared16((unit + Unit::piece_at(g, q * Unit::kChunks)) ^ (j * 16));
#pragma unroll
          for (int j = 0; j < Unit::kChunks / 2; ++j)
            scales[j] = load_shared4(unit + Unit::kScalesAt + lane * 2 * Unit::kChunks + j * 4);
          __syncwarp();
          copies.template copy_next<Layout::kCopies>(slot);
          float sum = 0;
          if constexpr (Layout::kProducts) sum = multiply_token<Unit>(codes, scales, lane_x + k * x_unit_bytes);
          if (q == 0) shared.sums[half][(i - first * units) * Unit::kRows + g] = sum;
          slot = slot + Unit::kBytes == Layout::kSlots * Unit::kBytes ? 0 : slot + Unit::kBytes;
          k += step;
          if (k >= units) k -= units;
        }
        __syncthreads();
        store(stage, index, first, last);
        half ^= 1;
      }
    }
  }
};

// computes   a chain of products of one token (ops/decode_chain.h)
// moves      read Σ N·(K/2 + K/16) B once; from L2 4·K B a stage and block, write 4·N B            bound: memory
// launch     grid one block a multiprocessor, all resident; block 32·kWarps, smem a ring of kSlots units a warp, x,
//            partial sums, stages
//            a block owns neighbouring tiles of each stage; their units are dealt to its warps in turn
// needs      K % 512 == 0, N % 8 == 0, weights 16-byte aligned
// numerics   weights and x exact; f32 sums in the order of the contract
// measured   not yet
template <typename Layout>
__global__ void __launch_bounds__(Layout::kThreads, 1) decode_chain_kernel(const __grid_constant__ Kernel p) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  constexpr int kRingBytes = Layout::kSlots * Unit::kBytes;
  auto& shared = *reinterpret_cast<Shared<Layout::kWarps>*>(dynamic + Layout::kWarps * kRingBytes);
  auto* const own = reinterpret_cast<uint16_t*>(&shared + 1);
  uint8_t* const x = reinterpret_cast<uint8_t*>(own) + p.own_bytes;
  auto* const stages = reinterpret_cast<ChainStage*>(x + p.x_bytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int first_own = first_tile(blockIdx.x, p.H / 8) * 8, owns = first_tile(blockIdx.x + 1, p.H / 8) * 8 - first_own;
  for (int i = thread; i < p.count; i += Layout::kThreads) stages[i] = block_stage(p.stages[i], Layout::kWarps);
  for (int i = thread; i < kZeroBytes<Unit> / 4; i += Layout::kThreads)
    reinterpret_cast<uint32_t*>(shared.zeros)[i] = 0;
  for (int i = thread; i < owns; i += Layout::kThreads) own[i] = __ldcg(p.h + first_own + i);
  const uint32_t launch =
      static_cast<uint32_t>(__ldcg(p.epoch)) * static_cast<uint32_t>(p.launches) + static_cast<uint32_t>(p.launch);
  __syncthreads();
  Block<Layout> block{p,      shared, own,        x, stages, launch * static_cast<uint32_t>(p.count) + 1,
                      thread, warp,   thread % 32};
  block.run(shared_address(dynamic + warp * kRingBytes));
  __syncthreads();
  for (int i = thread; i < owns; i += Layout::kThreads) p.h[first_own + i] = own[i];
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Shared memory of a launch: its parts, without the rings.
struct Sizes {
  int64_t own, x, all;
};
Sizes sizes_of(const ChainPlan& plan, int warps, int64_t blocks) {
  Sizes sizes{};
  sizes.own = (plan.H / 8 + blocks - 1) / blocks * 8 * 2;
  sizes.x = 2 * plan.K;
  const auto fixed = static_cast<int64_t>(warps > 16 ? sizeof(Shared<20>) : sizeof(Shared<16>));
  sizes.all = fixed + sizes.own + sizes.x + static_cast<int64_t>(plan.stages.size() * sizeof(ChainStage));
  return sizes;
}

int64_t blocks_of(const ChainTuning& tuning) {
  const int64_t most = device_attribute(cudaDevAttrMultiProcessorCount);
  return tuning.blocks ? std::min<int64_t>(most, tuning.blocks) : most;
}

// The longest rings that fit, of at least one unit.
int fitting_slots(const ChainPlan& plan, int warps, int64_t blocks) {
  const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return static_cast<int>((limit - sizes_of(plan, warps, blocks).all) / (warps * Unit::kBytes));
}

template <typename Layout>
void launch(const ChainCuda& args, cudaStream_t stream) {
  static_assert(sizeof(Shared<Layout::kWarps>) % 16 == 0);
  const ChainPlan& plan = *args.plan;
  const auto kernel = decode_chain_kernel<Layout>;
  const int64_t blocks = blocks_of(args.tuning);
  const Sizes sizes = sizes_of(plan, Layout::kWarps, blocks);
  Kernel p{};
  p.stages = args.stages;
  p.epoch = args.epoch;
  p.x = args.x;
  p.h = args.h;
  p.norm_eps = args.norm_eps;
  p.count = static_cast<int>(plan.stages.size());
  p.launch = args.launch;
  p.launches = args.launches;
  p.H = static_cast<int>(plan.H);
  p.own_bytes = static_cast<int>(sizes.own);
  p.x_bytes = static_cast<int>(sizes.x);
  const auto bytes = static_cast<int>(sizes.all + Layout::kWarps * Layout::kSlots * Unit::kBytes);
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  // All blocks wait for each other's messages, so all must be resident, or none.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Layout::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

template <int kWarps, int kSlots>
void launch_work(const ChainCuda& args, cudaStream_t stream) {
  switch (args.tuning.work) {
    case ChainWork::kAll:
      return launch<LayoutOf<kWarps, kSlots>>(args, stream);
    case ChainWork::kNoCopies:
      return launch<LayoutOf<kWarps, kSlots, false, true>>(args, stream);
    case ChainWork::kNoProducts:
      return launch<LayoutOf<kWarps, kSlots, true, false>>(args, stream);
    case ChainWork::kNeither:
      return launch<LayoutOf<kWarps, kSlots, false, false>>(args, stream);
  }
}

constexpr int kWarpsChosen = 16, kMostSlots = 5;

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

const char* chain_obstacle_cuda(const ChainPlan& plan) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 8) return "compute capability below 8.0";
  if (device_attribute(cudaDevAttrCooperativeLaunch) == 0) return "no cooperative launches";
  if (fitting_slots(plan, kWarpsChosen, blocks_of({})) < 2) return "too little shared memory";
  return nullptr;
}

void chain_cuda(const ChainCuda& args, CudaStream stream) {
  if (args.plan->stages.empty()) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int warps = args.tuning.warps ? args.tuning.warps : kWarpsChosen;
  const int fitting = fitting_slots(*args.plan, warps, blocks_of(args.tuning));
  const int most = args.tuning.slots ? args.tuning.slots : warps == kWarpsChosen ? kMostSlots : 4;
  const int slots = std::min(fitting, most);
  switch (10 * warps + slots) {
    case 162:
      return launch<LayoutOf<16, 2>>(args, cuda_stream);
    case 163:
      return launch<LayoutOf<16, 3>>(args, cuda_stream);
    case 164:
      return launch<LayoutOf<16, 4>>(args, cuda_stream);
    case 165:
      return launch_work<16, 5>(args, cuda_stream);
    case 203:
      return launch<LayoutOf<20, 3>>(args, cuda_stream);
    case 204:
      return launch<LayoutOf<20, 4>>(args, cuda_stream);
    default:
      fail(Code::kUnsupported, "a chain over %lld columns in blocks of %d warps, %d units each, on this device",
           static_cast<long long>(args.plan->K), warps, slots);
  }
}

}  // namespace qn
