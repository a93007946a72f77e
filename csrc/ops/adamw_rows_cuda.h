// What CUDA's warps do about rows of ops/adamw.h: which of them share one, its totals, and rows that stored nothing
// yet. Included by adamw.cu and adamw_plain.cu.
#pragma once

#include "ops/adamw_blocks_cuda.h"

namespace qn {
namespace {

constexpr unsigned kWarp = 32, kEveryLane = 0xffffffffu;

template <typename T>
__device__ T warp_sum(T x) {
  for (unsigned step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kEveryLane, x, step);
  return x;
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

// --- Rows that stored nothing yet ------------------------------------------------------------------------------------

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

}  // namespace
}  // namespace qn
