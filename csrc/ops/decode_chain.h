// Products of one token, one after the other, in one launch on CUDA: a chain of stages y = x · wᵀ over packed NVFP4
// weights, where x is bf16 that an earlier stage made. With what stands before and after a product, as gemv.h has it:
//
//   norm        x is normalised first and rounded to bf16
//   swiglu      weights gate and up: y = silu(x · gateᵀ) · (x · upᵀ), both products rounded to bf16 first
//   accumulate  y is added to the residual stream h, which stays on the chip, rounded, and becomes the new h
//
// One block a multiprocessor stays for the whole chain. Weights depend on no stage, so each warp copies what it will
// multiply in all of them, in order, through a ring of its own in shared memory and is ahead while it waits for x.
// Stages exchange their results as messages: two bf16 and a tag in one 8-byte word, written and read whole, so that the
// word says by itself that it has arrived. No other order between blocks is needed, no counter, no reset.
//
// Codes and x enter the tensor cores exactly, sums are f32, and bf16 output rounds once. The order of a sum depends on
// K alone; two runs give equal bytes, whatever the number of blocks. Magnitudes of x must stay below 2^63.
#pragma once

#include <vector>

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

constexpr int kChainMatrices = 3;

// All pointers on the device.
struct ChainProduct {
  Nvfp4View w[kChainMatrices];     // codes u8[N, K/2], scales e4m3[N, K/16], 16-byte aligned
  int64_t N[kChainMatrices] = {};  // N % 8 == 0
  int matrix_count = 1;
  int64_t K = 0;                // K % 512 == 0
  const float* norm = nullptr;  // in f32[K], 16-byte aligned, K <= 8192; null: none
  bool swiglu = false;          // matrices gate, up of equal N
  bool accumulate = false;      // one matrix, N = H
  int source = -1;              // the earlier stage whose y is x; −1: the chain's x
  // Its y, at least one of both. Messages of N / 2 words, no other stage's: zeros before the first launch, kept
  // between. What reads it after the chain: y f32[N] or bf16[N].
  uint64_t* messages = nullptr;
  void* y = nullptr;
  bool y_f32 = false;
};

// A stage as the kernel reads it.
struct alignas(16) ChainStage {
  const uint8_t* codes[kChainMatrices];
  const uint8_t* scales[kChainMatrices];
  const float* norm;
  const uint64_t* source;  // messages; null: the chain's x
  uint64_t* messages;
  void* y;
  float factors[kChainMatrices];  // of sums
  int32_t ends[kChainMatrices];   // tiles of matrices 0 .. i
  int32_t K;
  int16_t source_stage;
  uint8_t swiglu, accumulate, y_f32;
  // A block's, which fills them in: tiles of the stage that are its own, where it stands after as many units as it has
  // warps, and 2^16 / units of a tile.
  uint8_t step_tiles, step_units, unused;
  int32_t inverse_units;
  int32_t first, tiles;
};
static_assert(sizeof(ChainStage) == 128);

// What a launch leaves out, for benchmarks.
enum class ChainWork : uint8_t { kAll, kNoCopies, kNoProducts, kNeither };

// How the kernel is laid out; zeros: chosen.
struct ChainTuning {
  int warps = 0;   // of a block: 16 or 20
  int slots = 0;   // units of 8 rows by 512 columns in flight a warp: 2 to 5
  int blocks = 0;  // at most
  ChainWork work = ChainWork::kAll;
};

// A chain, ready to run.
struct ChainPlan {
  std::vector<ChainStage> stages;  // to be copied to the device
  int64_t K = 0;                   // the widest
  int64_t H = 0;                   // 0: no stage accumulates
};
// Error(kInternal) for products that do not keep to what is said above.
ChainPlan plan_chain(const std::vector<ChainProduct>& products);

struct ChainCuda {
  const ChainPlan* plan;     // on the host
  const ChainStage* stages;  // in, its stages on the device
  // in, one word that differs from launch to launch while the messages are kept: a token's position. Launches of one
  // position that share messages are numbered.
  const int32_t* epoch;
  int32_t launch = 0, launches = 1;
  const uint16_t* x;  // in bf16, 16-byte aligned, of stages without a source
  uint16_t* h;        // in and out bf16[H], the residual stream
  float norm_eps;
  ChainTuning tuning = {};
};

#if defined(QN_WITH_CUDA)
// Why the chain cannot run on the current device; null: it can.
const char* chain_obstacle_cuda(const ChainPlan& plan);
// A cooperative launch. No scratch; nothing is allocated and nothing waits.
void chain_cuda(const ChainCuda& args, CudaStream stream);
#endif

}  // namespace qn
