#include "ops/decode_chain.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"
#include "ops/bf16x8_cuda.h"
#include "ops/bulk_copy_cuda.h"
#include "ops/e2m1_mma_cuda.h"
#include "ops/group_reduce_cuda.h"
#include "ops/message_cuda.h"
#include "ops/swiglu_cuda.h"

namespace qn {

namespace {

constexpr int kColumnGroups = 8;  // warps that share a row's columns
constexpr int kEntries = 32;      // tiles in the ring, at most
constexpr int kMostTiles = 20;    // whose sums wait for the store
constexpr int kMostOwn = 512;     // values of h a block keeps
constexpr int kZeroBytes = 128;

// A tile is two fours of rows: neighbouring fours of outputs, or with swiglu four rows of gate and of up. In shared
// memory its codes are four pieces of two rows, its scales too, each piece further from a multiple of 128 bytes, so
// that the lanes of a read touch all banks. Lane 4g + q multiplies row kRowOf(g): piece 2 · (g % 2) + g / 2 % 2, its
// row g / 4.
struct Tile {
  static __host__ __device__ int code_piece(int K) { return K + 32; }
  static __host__ __device__ int scale_piece(int K) { return K / 8 + 16; }
  static __host__ __device__ int scales_at(int K) { return 4 * code_piece(K); }
  static __host__ __device__ int bytes(int K) { return (scales_at(K) + 4 * scale_piece(K) + 127) / 128 * 128; }
  // Row 0 .. 3 of four 0 or 1, as g.
  static __device__ int place(int four, int row) { return four | (row & 2) | (row & 1) << 2; }
};

struct Kernel {
  const ChainStage* stages;
  const int32_t* epoch;
  const uint16_t* x;
  const uint16_t* h;
  float norm_eps;
  int count, H;
  int x_bytes, ring_bytes;
};

// Shared memory before x and the ring.
template <int kWarps>
struct Shared {
  uint64_t full[kEntries], empty[kEntries];
  uint32_t offsets[kEntries];  // of a tile in the ring
  uint32_t ends[kEntries];     // of a tile, in bytes since the start: for the producer alone
  ChainStage stages[4];        // of a stage: its number modulo 4
  uint8_t zeros[kZeroBytes];
  float squares[kWarps];
  uint16_t own[kMostOwn];  // h of this block's outputs
  // Of rows, by column groups. Twice, because a store may lag behind the next sums.
  float sums[2][kMostTiles][kColumnGroups][8];
};

// The block's part of a stage's outputs, in fours.
struct Part {
  int first, fours, tiles;
  __device__ Part(int all, int swiglu) {
    const auto first_of = [&](uint32_t block) {
      return static_cast<int>(block * static_cast<uint32_t>(all) / gridDim.x);
    };
    first = first_of(blockIdx.x);
    fours = first_of(blockIdx.x + 1) - first;
    tiles = swiglu ? fours : (fours + 1) / 2;
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The copying warp: tiles of all stages in order, each as soon as the ring has room. Lanes 0 .. 3 copy the pieces of
// codes, 4 .. 7 those of scales.
template <int kWarps>
struct Producer {
  Shared<kWarps>& shared;
  uint32_t ring, ring_bytes;
  uint32_t head = 0;                   // where the next tile goes
  uint32_t written = 0, released = 0;  // bytes since the start, with what was left out at the ring's end
  int entry = 0, oldest = 0;           // the next tile; the first that is not known to be multiplied

  struct Stage {
    const uint8_t* bases[kChainMatrices];
    int ends[kChainMatrices];
    int K, swiglu;
  };

  static __device__ __forceinline__ Stage load(const ChainStage& from) {
    const bool scales = threadIdx.x % 32 >= 4;
    Stage stage;
#pragma unroll
    for (int i = 0; i < kChainMatrices; ++i) {
      stage.bases[i] = scales ? from.scales[i] : from.codes[i];
      stage.ends[i] = from.ends[i];
    }
    stage.K = from.K;
    stage.swiglu = from.swiglu;
    return stage;
  }

  // Where this tile goes, once there is room.
  __device__ __forceinline__ uint32_t reserve(uint32_t bytes) {
    if (head + bytes > ring_bytes) {
      written += ring_bytes - head;
      head = 0;
    }
    while (written + bytes - released > ring_bytes || entry - oldest == kEntries) {
      wait_barrier(shared_address(&shared.empty[oldest % kEntries]), oldest / kEntries & 1);
      released = shared.ends[oldest % kEntries];
      ++oldest;
    }
    const uint32_t at = head;
    head += bytes;
    written += bytes;
    return at;
  }

  __device__ __forceinline__ void copy(const Stage& stage, const Part& part, int tile, uint32_t bytes) {
    const int lane = static_cast<int>(threadIdx.x % 32), piece = lane % 4, slot = entry % kEntries;
    const uint32_t at = reserve(bytes), full = shared_address(&shared.full[slot]);
    const int fours = stage.swiglu ? 2 : min(2, part.fours - 2 * tile);
    if (lane == 0) {
      shared.offsets[slot] = at;
      shared.ends[slot] = written;
      arrive_expecting(full, fours * 2 * (stage.K + stage.K / 8));
    }
    __syncwarp();
    if (lane < 8 && piece / 2 < fours) {
      const bool scales = lane >= 4;
      int four = part.first + (stage.swiglu ? tile : 2 * tile + piece / 2), matrix = 0;
      if (stage.swiglu) {
        matrix = piece / 2;
      } else {
        matrix = (four >= stage.ends[0] ? 1 : 0) + (four >= stage.ends[1] ? 1 : 0);
        four -= matrix == 0 ? 0 : matrix == 1 ? stage.ends[0] : stage.ends[1];
      }
      const uint8_t* base = matrix == 0 ? stage.bases[0] : matrix == 1 ? stage.bases[1] : stage.bases[2];
      const uint32_t size = scales ? stage.K / 8 : stage.K;  // of two rows
      const uint32_t to =
          scales ? Tile::scales_at(stage.K) + piece * Tile::scale_piece(stage.K) : piece * Tile::code_piece(stage.K);
      copy_bulk(ring + at + to, base + (int64_t{four} * 2 + piece % 2) * size, size, full);
    }
    ++entry;
  }

  __device__ __forceinline__ void run(const Kernel& p) {
    Stage next = load(p.stages[0]);
    for (int i = 0; i < p.count; ++i) {
      const Stage stage = next;
      if (i + 1 < p.count) next = load(p.stages[i + 1]);  // on its way while this one's tiles are
      const Part part(stage.ends[kChainMatrices - 1], stage.swiglu);
      const uint32_t bytes = Tile::bytes(stage.K);
      for (int tile = 0; tile < part.tiles; ++tile) copy(stage, part, tile, bytes);
    }
  }
};

// By 2^64, so that products with small x stay normal numbers.
__device__ __forceinline__ uint32_t scale_x(uint32_t pair) { return multiply_bf16x2(pair, 0x5f805f80u); }

// sum += scale · the lane's 16 columns of its row, as b has them (stage_eight).
__device__ __forceinline__ void multiply_block(float& sum, uint32_t first, uint32_t second, const uint4& b,
                                               float scale) {
  const uint4 low = e2m1x8_to_bf16(first), high = e2m1x8_to_bf16(second);
  // Rows g of a are pairs (0, 4), (1, 5) for column 2q of b, rows g + 8 the others for column 2q + 1.
  float4 product = multiply_tiles({low.x, low.z, low.y, low.w}, {b.x, b.y}, {0, 0, 0, 0});
  product = multiply_tiles({high.x, high.z, high.y, high.w}, {b.z, b.w}, product);
  sum = fmaf(product.x + product.w, scale, sum);
}

// The multiplying warps. Columns are dealt to kColumnGroups groups of kRowGroups warps: first, as far as there are
// whole 1024s, 128 of each to a group, 32 of them to the lanes q; a last 512 as 64 and 16. So a group has K / 512
// blocks of 16 columns for each q. Tiles are dealt to the groups' warps.
template <int kRowGroups, int kTiles>
struct Consumer {
  static constexpr int kWarps = kColumnGroups * kRowGroups, kThreads = 32 * kWarps, kGroupThreads = 32 * kRowGroups;
  // Eights of x that a thread waits for at once: up to 8192 columns in all, which is what may be normalised.
  static constexpr int kMostEights = kRowGroups == 1 ? 4 : 2;
  using Memory = Shared<kWarps>;

  const Kernel& p;
  Memory& shared;
  uint8_t* x;  // of the block: of a group, block, q, column of b: 16 bytes
  uint32_t ring;
  uint32_t first_tag;  // of this launch
  int thread, warp, lane, g, q, column_group, row_group;
  int entry = 0, half = 0;

  __device__ Consumer(const Kernel& p, Memory& shared, uint8_t* x, uint32_t ring)
      : p(p), shared(shared), x(x), ring(ring) {
    thread = static_cast<int>(threadIdx.x);
    warp = thread / 32;
    lane = thread % 32;
    g = lane / 4;
    q = lane % 4;
    column_group = warp % kColumnGroups;
    row_group = warp / kColumnGroups;
    first_tag = static_cast<uint32_t>(__ldcg(p.epoch)) * static_cast<uint32_t>(p.count) + 1;
    if (p.H > 0) {
      const Part part(p.H / 4, 0);
      for (int i = thread; i < 4 * part.fours; i += kThreads) shared.own[i] = __ldcg(p.h + 4 * part.first + i);
    }
  }

  // The first column of an eight of this group: [block][q][half of 16].
  __device__ __forceinline__ int column(int eight, int K) const {
    const int block = eight / 8, lane_q = eight / 2 % 4, n = K / 512;
    const int first = block < n / 2 * 2 ? block / 2 * 1024 + column_group * 128 + lane_q * 32 + block % 2 * 16
                                        : (n - 1) * 512 + column_group * 64 + lane_q * 16;
    return first + eight % 2 * 8;
  }

  // x · 2^64 as the operand b of multiply_tiles: lane 4g + q multiplies with column g of b, of which columns 2q and
  // 2q + 1 belong to the lanes q: they hold pairs (0, 4), (1, 5) and (2, 6), (3, 7) of eight columns of x; the other
  // lanes of q read zeros.
  __device__ __forceinline__ void stage_eight(uint8_t* group_x, int eight, const uint4& v) const {
    uint8_t* to = group_x + eight / 2 * 32 + eight % 2 * 8;
    *reinterpret_cast<uint2*>(to) = {scale_x(__byte_perm(v.x, v.z, 0x5410)), scale_x(__byte_perm(v.x, v.z, 0x7632))};
    *reinterpret_cast<uint2*>(to + 16) = {scale_x(__byte_perm(v.y, v.w, 0x5410)),
                                          scale_x(__byte_perm(v.y, v.w, 0x7632))};
  }

  // Eights first, first + kGroupThreads, … of x, once they are there.
  __device__ __forceinline__ void wait_eights(uint4 (&bits)[kMostEights], const ChainStage& stage, int first,
                                              int eights) const {
    const uint32_t tag = first_tag + static_cast<uint32_t>(stage.source_stage);
    bool there = false;
    for (int polls = 0; !there; ++polls) {
      if (polls > kMostPolls) __trap();
      there = true;
#pragma unroll
      for (int i = 0; i < kMostEights; ++i) {
        const int eight = first + i * kGroupThreads;
        if (eight >= eights) continue;
        const int at = column(eight, stage.K);
        if (stage.source) {
          there = load_messages(bits[i], stage.source + at / 2, tag) && there;
        } else {
          bits[i] = __ldcg(reinterpret_cast<const uint4*>(p.x + at));
        }
      }
    }
  }

  __device__ __forceinline__ float inverse_rms(const uint4 (&bits)[kMostEights], int K, int first, int eights) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostEights; ++i) {
      if (first + i * kGroupThreads >= eights) continue;
      const Eight eight = bf16x8_to_f32(bits[i]);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) sum = fmaf(eight.value[j], eight.value[j], sum);
    }
    sum = reduce_lanes<32>(sum, AddLanes{});
    if (lane == 0) shared.squares[warp] = sum;
    sync_threads<kThreads>(1);
    sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += shared.squares[i];
    return 1.0f / sqrtf(sum / static_cast<float>(K) + p.norm_eps);
  }

  // The group's columns of x to shared memory.
  __device__ __forceinline__ void stage_x(const ChainStage& stage) {
    const int eights = stage.K / 64, own = row_group * 32 + lane;
    uint8_t* const group_x = x + column_group * (stage.K / 4);
    uint4 bits[kMostEights];
    if (stage.norm) {
      // As far as most rows go, on their way while x is.
      Eight weights = {};
      if (own < eights) weights = load8(stage.norm + column(own, stage.K));
      wait_eights(bits, stage, own, eights);
      const float inverse = inverse_rms(bits, stage.K, own, eights);
#pragma unroll
      for (int i = 0; i < kMostEights; ++i) {
        const int eight = own + i * kGroupThreads;
        if (eight >= eights) continue;
        if (i > 0) weights = load8(stage.norm + column(eight, stage.K));
        Eight v = bf16x8_to_f32(bits[i]);
#pragma unroll
        for (int j = 0; j < kLaneValues; ++j) v.value[j] = v.value[j] * inverse * weights.value[j];
        stage_eight(group_x, eight, f32_to_bf16x8(v));
      }
    } else {
      for (int first = own; first < eights; first += kMostEights * kGroupThreads) {
        wait_eights(bits, stage, first, eights);
#pragma unroll
        for (int i = 0; i < kMostEights; ++i) {
          const int eight = first + i * kGroupThreads;
          if (eight < eights) stage_eight(group_x, eight, bits[i]);
        }
      }
    }
    if constexpr (kRowGroups == 1) {
      __syncwarp();
    } else {
      sync_threads<kGroupThreads>(2 + column_group);
    }
  }

  // Tiles tile .. tile + kCount − 1 of the stage, whose first is `entry`; sums go to places `place` on.
  template <int kCount>
  __device__ __forceinline__ void multiply(int K, int tile, int place) {
    const int n = K / 512;
    const bool reads_x = g / 2 == q;
    const uint8_t* b_at =
        reads_x ? x + column_group * (K / 4) + q * 32 + g % 2 * 16 : shared.zeros + (g / 2 + 2) % 4 * 32;
    const int b_step = reads_x ? 128 : 0;
    const int piece = g % 2 * 2 + g / 2 % 2;
    const int codes_in = piece * Tile::code_piece(K) + g / 4 * (K / 2) + column_group * 64 + q * 16;
    const int scales_in =
        Tile::scales_at(K) + piece * Tile::scale_piece(K) + g / 4 * (K / 16) + column_group * 8 + q * 2;
    uint32_t codes[kCount], scales[kCount];
    float sums[kCount] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = entry + tile + i, slot = at % kEntries;
      wait_barrier(shared_address(&shared.full[slot]), at / kEntries & 1);
      codes[i] = ring + shared.offsets[slot] + codes_in;
      scales[i] = ring + shared.offsets[slot] + scales_in;
    }
#pragma unroll 2
    for (int j = 0; j < n / 2; ++j) {
      const uint4 first = *reinterpret_cast<const uint4*>(b_at),
                  second = *reinterpret_cast<const uint4*>(b_at + b_step);
      b_at += 2 * b_step;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint4 c = load_shared16(codes[i]);
        const float2 scale = decode_e4m3x2<0>(load_shared2(scales[i]));
        codes[i] += 512;
        scales[i] += 64;
        multiply_block(sums[i], c.x, c.y, first, scale.x);
        multiply_block(sums[i], c.z, c.w, second, scale.y);
      }
    }
    if (n % 2 != 0) {
      const uint4 b = *reinterpret_cast<const uint4*>(b_at);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint2 c = load_shared8(codes[i] - column_group * 32 - q * 8);
        const float2 scale = decode_e4m3x2<0>(load_shared1(scales[i] - column_group * 4 - q));
        multiply_block(sums[i], c.x, c.y, b, scale.x);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (lane == 0) arrive(shared_address(&shared.empty[(entry + tile + i) % kEntries]));
      const float sum = reduce_lanes<4>(sums[i], AddLanes{});
      if (q == 0) shared.sums[half][place + i][column_group][g] = sum;
    }
  }

  __device__ __forceinline__ float row_sum(int tile, int place) const {
    float sum = shared.sums[half][tile][0][place];
#pragma unroll
    for (int i = 1; i < kColumnGroups; ++i) sum += shared.sums[half][tile][i][place];
    return sum;
  }

  // Output i of the block, of a tile whose sums are at place `tile`.
  __device__ __forceinline__ float output(const ChainStage& stage, const Part& part, int i, int tile) {
    if (stage.swiglu) {
      const float gate = row_sum(tile, Tile::place(0, i % 4)) * stage.factors[0];
      const float up = row_sum(tile, Tile::place(1, i % 4)) * stage.factors[1];
      return swiglu_value(bf16_to_f32(f32_to_bf16(gate)), bf16_to_f32(f32_to_bf16(up)));
    }
    const int four = part.first + i / 4, matrix = (four >= stage.ends[0] ? 1 : 0) + (four >= stage.ends[1] ? 1 : 0);
    float value = row_sum(tile, Tile::place(i / 4 % 2, i % 4)) * stage.factors[matrix];
    if (stage.accumulate) {
      value += bf16_to_f32(shared.own[i]);
      shared.own[i] = f32_to_bf16(value);
    }
    return value;
  }

  // The outputs of tiles [first, last) of the stage.
  __device__ __forceinline__ void store(const ChainStage& stage, const Part& part, int index, int first, int last) {
    const int log_tile = stage.swiglu ? 2 : 3, end = min(4 * part.fours, last << log_tile);  // outputs of a tile
    for (int i = (first << log_tile) + thread; i - lane < end; i += kThreads) {
      const float value = i < end ? output(stage, part, i, (i >> log_tile) - first) : 0.0f;
      if (stage.y) {
        if (i < end) stage.y[4 * part.first + i] = value;
        continue;
      }
      const float after = __shfl_down_sync(0xffffffffu, value, 1);
      if (i < end && i % 2 == 0) {
        store_message(stage.messages + (4 * part.first + i) / 2, f32_to_bf16x2(value, after),
                      first_tag + static_cast<uint32_t>(index));
      }
    }
  }

  __device__ __forceinline__ void run() {
    for (int index = 0; index < p.count; ++index) {
      const ChainStage& stage = shared.stages[index % 4];
      const Part part(stage.ends[kChainMatrices - 1], stage.swiglu);
      uint4 next;
      const bool fetches = thread < static_cast<int>(sizeof(ChainStage) / sizeof(uint4)) && index + 1 < p.count;
      if (fetches) next = reinterpret_cast<const uint4*>(p.stages + index + 1)[thread];
      stage_x(stage);
      for (int first = 0; first < part.tiles; first += kMostTiles) {
        const int last = min(part.tiles, first + kMostTiles);
        for (int tile = first + row_group * kTiles; tile < last; tile += kRowGroups * kTiles) {
          if (kTiles > 1 && tile + 1 < last) {
            multiply<kTiles>(stage.K, tile, tile - first);
          } else {
            multiply<1>(stage.K, tile, tile - first);
          }
        }
        // Whoever reads this stage's predecessor, or the one before, has it in another place.
        if (fetches && last == part.tiles) reinterpret_cast<uint4*>(&shared.stages[(index + 1) % 4])[thread] = next;
        sync_threads<kThreads>(1);
        store(stage, part, index, first, last);
        half ^= 1;
      }
      entry += part.tiles;
    }
  }
};

#endif

template <int kRowGroups>
constexpr int kBlockThreads = 32 * (kColumnGroups * kRowGroups + 1);

// computes   a chain of products of one token (ops/decode_chain.h)
// moves      read Σ N·(K/2 + K/16) B once; from L2 4·K B a stage and block, write 4·N B            bound: memory
// launch     grid one block a multiprocessor, all resident; block 8·kRowGroups warps that multiply and one that copies;
//            smem a ring of tiles of 8 rows, x, sums                                        from sm_90 on
// needs      K % 512 == 0, N % 4 == 0, weights 16-byte aligned
// numerics   weights and x exact; f32 sums in the order of the contract
// measured   not yet
template <int kRowGroups, int kTiles>
__global__ void __launch_bounds__(kBlockThreads<kRowGroups>, 1) decode_chain_kernel(const __grid_constant__ Kernel p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t dynamic[];
  using Multiplies = Consumer<kRowGroups, kTiles>;
  using Memory = typename Multiplies::Memory;
  auto& shared = *reinterpret_cast<Memory*>(dynamic);
  uint8_t* const x = dynamic + (sizeof(Memory) + 127) / 128 * 128;
  const uint32_t ring = shared_address(x + p.x_bytes);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kEntries) {
    init_barrier(shared_address(&shared.full[thread]), 1);
    init_barrier(shared_address(&shared.empty[thread]), kColumnGroups);
    publish_barriers();
  }
  if (thread < static_cast<int>(sizeof(ChainStage) / sizeof(uint4)))
    reinterpret_cast<uint4*>(shared.stages)[thread] = reinterpret_cast<const uint4*>(p.stages)[thread];
  if (thread < kZeroBytes / 4) reinterpret_cast<uint32_t*>(shared.zeros)[thread] = 0;
  __syncthreads();
  if (thread >= Multiplies::kThreads) {
    Producer<Multiplies::kWarps>{shared, ring, static_cast<uint32_t>(p.ring_bytes)}.run(p);
  } else {
    Multiplies(p, shared, x, ring).run();
  }
#endif
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

template <int kRowGroups>
int64_t fixed_bytes(const ChainPlan& plan) {
  return (sizeof(Shared<kColumnGroups * kRowGroups>) + 127) / 128 * 128 + 2 * plan.K;
}

template <int kRowGroups, int kTiles>
void launch(const ChainCuda& args, cudaStream_t stream) {
  const ChainPlan& plan = *args.plan;
  const auto kernel = decode_chain_kernel<kRowGroups, kTiles>;
  const int64_t fixed = fixed_bytes<kRowGroups>(plan);
  int64_t ring = (device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed) / 128 * 128;
  if (args.tuning.ring_bytes) ring = std::min(ring, args.tuning.ring_bytes / 128 * 128);
  // What a warp waits for at once, and one more tile, because a tile that does not fit at the ring's end leaves it out.
  if (ring < (kTiles + 1) * int64_t{Tile::bytes(static_cast<int>(plan.K))}) {
    fail(Code::kUnsupported, "a chain over %lld columns does not fit the shared memory of this device",
         static_cast<long long>(plan.K));
  }
  Kernel p{};
  p.stages = args.stages;
  p.epoch = args.epoch;
  p.x = args.x;
  p.h = args.h;
  p.norm_eps = args.norm_eps;
  p.count = static_cast<int>(plan.stages.size());
  p.H = static_cast<int>(plan.H);
  p.x_bytes = static_cast<int>(2 * plan.K);
  p.ring_bytes = static_cast<int>(ring);
  const auto bytes = static_cast<int>(fixed + ring);
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  int64_t blocks = std::min<int64_t>(device_attribute(cudaDevAttrMultiProcessorCount), plan.fours);
  if (args.tuning.blocks) blocks = std::min<int64_t>(blocks, args.tuning.blocks);
  if (plan.H / blocks + 4 > kMostOwn) fail(Code::kUnsupported, "a chain of %lld rows", static_cast<long long>(plan.H));
  // All blocks wait for each other's messages, so all must be resident, or none.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kBlockThreads<kRowGroups>);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

const char* chain_obstacle_cuda(const ChainPlan& plan) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 9) return "compute capability below 9.0";
  if (device_attribute(cudaDevAttrCooperativeLaunch) == 0) return "no cooperative launches";
  const int64_t least = fixed_bytes<3>(plan) + 2 * int64_t{Tile::bytes(static_cast<int>(plan.K))};
  if (device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) < least) return "too little shared memory";
  return nullptr;
}

void chain_cuda(const ChainCuda& args, CudaStream stream) {
  if (args.plan->stages.empty()) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int row_groups = args.tuning.row_groups ? args.tuning.row_groups : 2;
  const int tiles = args.tuning.tiles ? args.tuning.tiles : 1;
  switch (10 * row_groups + tiles) {
    case 11:
      return launch<1, 1>(args, cuda_stream);
    case 12:
      return launch<1, 2>(args, cuda_stream);
    case 21:
      return launch<2, 1>(args, cuda_stream);
    case 22:
      return launch<2, 2>(args, cuda_stream);
    case 31:
      return launch<3, 1>(args, cuda_stream);
    default:
      fail(Code::kInternal, "no chain of %d row groups, %d tiles", row_groups, tiles);
  }
}

}  // namespace qn
