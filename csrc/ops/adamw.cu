// adamw of ops/adamw.h.
#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda_check.h"
#include "ops/adamw_kernels.h"
#include "ops/adamw_packed_cuda.h"
#include "ops/adamw_rows_cuda.h"

namespace qn {

namespace {

// Of the packed kernel: one thread block an SM, whose threads have 128 registers. More threads have fewer, and spill.
constexpr int kPackedThreads = 512;
constexpr unsigned kPackedWarps = kPackedThreads / kWarp;
// How many warps may share a row; each such group of a thread block has a named barrier of its own.
constexpr unsigned kMaxGroupWarps = 4;

// Weights with a kernel of their own, whose branches on the mode are gone; kOther takes every kind of weight.
enum class WeightPath { kNvfp4, kNvfp4Residual, kOther };

// What is stored of a block. A thread fetches its next one while it still computes, or waits for memory every time.
template <MomentFormat kFormat, WeightPath kPath, bool kBf16>
struct StoredBlock {
  PackedBlock<kFormat> m, v;
  Nvfp4Block codes, residual;
  Gradient<kBf16> g;

  // offset: of the block in the gradient
  __device__ __forceinline__ void fetch(const AdamwArgs& args, int64_t at, int64_t offset) {
    m = load_packed<kFormat>(args.m.values, args.m.scales, at);
    v = load_packed<kFormat>(args.v.values, args.v.scales, at);
    g.fetch(args, offset);
    if (kPath != WeightPath::kOther || args.storage == Storage::kNvfp4) {
      codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
    }
    if constexpr (kPath == WeightPath::kNvfp4Residual) {
      residual = load_packed<MomentFormat::kNvfp4>(args.residual_codes, args.residual_scales, at);
    }
  }
};
// What is stored of a row, and whether that is nothing yet.
struct StoredRow {
  float m = 0, v = 0;
  bool fresh = true;

  __device__ __forceinline__ void fetch(const AdamwArgs& args, int64_t row) {
    m = args.m.rows[row];
    v = args.v.rows[row];
    fresh = args.v.scales[row * (args.K / 16)] == 0;
  }
};

// The moments of a block in a row that has some; returns Σ u².
template <MomentFormat kFormat, typename Stored>
__device__ __forceinline__ float step_moment_block(const PackedArgs& args, const PackedRow& row,
                                                   const TableLane& tables, Stored& stored, int64_t at, float* u,
                                                   BlockWords& words, CentreSum& sum) {
  auto &m = stored.m, &v = stored.v;
  float squares = 0;
  if constexpr (kFormat == MomentFormat::kNvfp4) {
    SteppedBlock stepped;
    add_words(sum, v, e4m3_value(v.scale));
    squares = step_elements(row, tables, m, v, stored.g, u, stepped);
    store_moments(row, tables, m, v, stepped, args, at, words);
  } else {
    uint32_t m_codes[16], v_codes[16], first[16], second[16];
    float gradient[16];
    words = block_words(args, at);
    unpack_codes(m_codes, m);
    unpack_codes(v_codes, v);
    QN_EACH_OF(16) {
      gradient[i] = stored.g[i];
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

template <WeightPath kPath>
__device__ __forceinline__ void step_any_weight(const AdamwArgs& args, const TableLane& tables, int64_t at,
                                                Nvfp4Block& codes, Nvfp4Block& residual, const float* u,
                                                const BlockWords& words, RowTotals& totals) {
  if constexpr (kPath == WeightPath::kOther) {
    if (args.storage == Storage::kNvfp4) {
      step_nvfp4_weight(args, at, codes, u, words, totals);
    } else {
      step_dense_block(args, at, u);
    }
  } else {
    const Nvfp4Block before = codes;
    if constexpr (kPath == WeightPath::kNvfp4) {
      step_weight_words(args, tables, codes, u, words, totals.saturated);
    } else {
      step_residual_words(args, tables, codes, residual, u, words, totals.saturated);
      store_packed(args.residual_codes, args.residual_scales, at, residual);
    }
    store_packed(args.codes, args.scales, at, codes);
    totals.changed_codes += count_changes(codes, before);
  }
}

// The whole of ops/adamw.h for rows with nvfp4 or int8 moments.
//
// computes   m, v, u and the weights of each block of 16 by itself; then the row's totals and its next centre
// moves      nvfp4: 3.375 B an element of weights and moments, read and written, and the gradient (2 or 4 B) once
// launch     grid min(SMs, rows), block 512, smem 104 KiB of tables; a group of 1, 2 or 4 warps goes from row
//            to row, a thread takes a block of 16 columns a round, codes in 8-byte accesses
// needs      K % 16 == 0, gradients and masters 16-byte, codes 8-byte (int8: 16-byte) aligned
// numerics   the functions of ops/adamw_packed.h: codes, scales, rows and masters are the CPU's bytes
// measured   H200, all NVFP4, bf16 gradient, b=.001 or .05: N=9728 K=2560 98.3 us, 1362 GB/s, 32 % of copy (4270);
//            N=4096 44.6 us; N=1024 18.8 us; with a residual N=9728 150.8 us before its last change; bound by
//            instructions; 2026-11-21
template <MomentFormat kFormat, WeightPath kPath, bool kBf16>
__global__ void __launch_bounds__(kPackedThreads, 1)
    adamw_packed_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ PackedArgs args, unsigned group_warps) {
  __shared__ GroupTotals totals_of[kPackedWarps], fresh_of[kPackedWarps];
  if (stopped(rows, args)) return;
  const Group group(group_warps);
  const unsigned stride = group_warps * kWarp, blocks = static_cast<unsigned>(args.K / 16);
  const unsigned row_stride = gridDim.x * (kPackedWarps / group_warps),
                 row_count = static_cast<unsigned>(args.row_count);
  unsigned index = blockIdx.x + gridDim.x * group.index;
  const auto element_of = [&](int64_t row, unsigned block) { return 16 * (row * blocks + block); };
  StoredRow stored_row;
  StoredBlock<kFormat, kPath, kBf16> stored;
  const auto fetch_block = [&](unsigned row, unsigned block) {
    if (row < row_count && block < blocks) {
      stored.fetch(args, element_of(args.row_begin + row, block), element_of(row, block));
    }
  };
  if (index < row_count) stored_row.fetch(args, args.row_begin + index);
  fetch_block(index, group.thread);
  fill_tables(args.keep);
  __syncthreads();
  const TableLane tables(threadIdx.x % kWarp);
  for (; index < row_count; index += row_stride) {
    const int64_t row = args.row_begin + index;
    const bool fresh = stored_row.fresh;
    const PackedRow constants = packed_row(args, stored_row.v, stored_row.m);
    // Every warp of the group has fetched what it needs to know of this row, and its totals of the last one are read:
    // from here on they may be written.
    group.wait();
    if (index + row_stride < row_count) stored_row.fetch(args, row + row_stride);
    CentreSum sum;
    if (fresh) {
      sum = fresh_sum(args, constants, int64_t{index} * args.K, group.thread, stride);
      sum = group_total(group, fresh_of + group.index * group_warps, RowTotals{}, sum).centre;
    }
    const bool stores = !fresh || sum.live > 0;
    const float centre = fresh && stores ? fresh_centre(sum.eighths, sum.live) : 0.0f;
    RowTotals totals;
    for (unsigned block = group.thread; block < blocks; block += stride) {
      const int64_t at = element_of(row, block);
      float u[16], squares = 0;
      BlockWords words;
      if (fresh) {
        float local[16];
        fresh_block<kFormat>(args, constants, at, element_of(index, block), centre, stores, local);
        QN_EACH_OF(16) u[i] = local[i];
        QN_EACH_OF(16) squares = fused(u[i], u[i], squares);
        words = block_words(args, at);
      } else {
        squares = step_moment_block<kFormat>(args, constants, tables, stored, at, u, words, sum);
      }
      totals.update_squares += static_cast<double>(squares);
      // Here fewest registers are taken, and a weight takes longer than memory.
      Nvfp4Block codes = stored.codes, residual = stored.residual;
      const bool last = block + stride >= blocks;
      fetch_block(last ? index + row_stride : index, last ? group.thread : block + stride);
      step_any_weight<kPath>(args, tables, at, codes, residual, u, words, totals);
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

// --------------------------------------------------------------------------------------------------------------------

// How many warps share a row: what ends first, counted in rounds of 32 blocks a warp; a row itself takes half of one.
unsigned group_warps_of(int64_t row_count, int64_t K, int64_t processors) {
  unsigned best = 1;
  int64_t least = INT64_MAX;
  for (unsigned warps = 1; warps <= kMaxGroupWarps; warps *= 2) {
    const int64_t groups = processors * (kPackedWarps / warps), lanes = kWarp * warps;
    const int64_t rows = (row_count + groups - 1) / groups, rounds = (K / 16 + lanes - 1) / lanes;
    const int64_t halves = rows * (2 * rounds + 1);
    if (halves < least) {
      least = halves;
      best = warps;
    }
  }
  return best;
}

template <MomentFormat kFormat, WeightPath kPath, bool kBf16>
void launch_gradient(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  int device = 0, processors = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  // Rows go to every processor before a second one goes to any.
  const auto grid = static_cast<unsigned>(args.row_count < processors ? args.row_count : processors);
  const auto kernel = adamw_packed_kernel<kFormat, kPath, kBf16>;
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<grid, kPackedThreads, kSharedBytes, stream>>>(rows, PackedArgs{args, philox_keys<7>(args.seed)},
                                                         group_warps_of(args.row_count, args.K, processors));
  QN_CUDA_CHECK(cudaGetLastError());
}
template <MomentFormat kFormat, WeightPath kPath>
void launch_packed(AdamwRow* rows, const AdamwArgs& args, cudaStream_t stream) {
  if (args.g_bf16 != nullptr) {
    launch_gradient<kFormat, kPath, true>(rows, args, stream);
  } else {
    launch_gradient<kFormat, kPath, false>(rows, args, stream);
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
  if (args.moments == MomentFormat::kNvfp4) {
    launch_nvfp4_moments(rows, args, static_cast<cudaStream_t>(stream));
  } else if (args.moments == MomentFormat::kInt8) {
    launch_packed<MomentFormat::kInt8, WeightPath::kOther>(rows, args, static_cast<cudaStream_t>(stream));
  } else {
    adamw_plain_cuda(rows, args, stream);
  }
}

}  // namespace qn
