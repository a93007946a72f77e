// How a warp of gemv.cu's kernel copies packed weights to shared memory, unit by unit. For .cu files alone.
#pragma once

#include "ops/async_cuda.h"
#include "ops/gemv_kernel_cuda.h"

namespace qn::gemv {

// Where a row does not end at a unit: 16 codes and a scale at a time, through registers. Columns past K are zeros. The
// tile is that from which `left` rows of the block are left.
template <typename Unit>
__device__ __noinline__ void copy_ragged(const Kernel& p, const Part& part, uint32_t slot, int left, int k, int lane) {
  auto* const to = static_cast<uint8_t*>(__cvta_shared_to_generic(slot));
  const int plane = k >= p.units ? 1 : 0, column = (k - plane * p.units) * kUnitColumns;
  for (int block = lane; block < Unit::kRows * kUnitRowScales; block += 32) {
    const int inside = block / kUnitRowScales, at = block % kUnitRowScales, row = part.rows - left + inside;
    const Plane& w = p.matrices[p.swiglu ? inside % 2 : part.matrix].planes[plane];
    uint2 codes{0, 0};
    uint8_t scale = 0;
    if (inside < left && column + at * 16 < p.K) {
      const int64_t offset = int64_t{part.first + (p.swiglu ? row / 2 : row)} * p.K + column + at * 16;
      codes = *reinterpret_cast<const uint2*>(w.codes + offset / 2);
      scale = w.scales[offset / 16];
    }
    *reinterpret_cast<uint2*>(to + Unit::piece_at(inside, at / 2) + at % 2 * 8) = codes;
    to[Unit::kScalesAt + inside * kUnitRowScales + at] = scale;
  }
}

// The ring of a warp: which unit of the block it copies next, and what this lane copies of each. Units are numbered
// tile by tile, in a tile by columns, packed before residual; those of a warp are kWarps apart.
template <typename Layout>
struct Ring {
  using Unit = typename Layout::Unit;
  int k;            // the unit's place in its tile
  int left;         // rows of the block from its tile on; none: no unit is left
  uint32_t offset;  // of its codes from the lane's first ones
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t residual_codes, residual_scales;  // from those to the residual's
  uint32_t slots;                           // in shared memory
  uint32_t copy_step;                       // bytes between two copies' rows
  uint32_t step_offset, wrap_offset;

  __device__ Ring(const Kernel& p, const Part& part, const uint8_t* ring, int warp, int lane) {
    slots = shared_address(ring + warp * (Layout::kStages * Unit::kBytes));
    const int pairs = p.swiglu ? 2 : 1, row_bytes = p.K / 2;
    const uint32_t tile_bytes = Unit::kRows / pairs * row_bytes;
    k = warp;
    left = part.rows;
    offset = 0;
    for (; k >= p.tile_units; k -= p.tile_units) {
      left -= Unit::kRows;
      offset += tile_bytes;
    }
    offset += k * kUnitRowBytes;
    step_offset = p.step_tiles * tile_bytes + p.step_units * kUnitRowBytes;
    wrap_offset = tile_bytes - p.tile_units * kUnitRowBytes;

    const int row = lane / Unit::kRowLanes, scales_row = lane / Unit::kScaleLanes;  // of a tile
    const Matrix& of_codes = p.matrices[p.swiglu ? row % 2 : part.matrix];
    const Matrix& of_scales = p.matrices[p.swiglu ? scales_row % 2 : part.matrix];
    codes = of_codes.planes[0].codes + (int64_t{part.first + row / pairs} * row_bytes + lane % Unit::kRowLanes * 16);
    scales = of_scales.planes[0].scales +
             (int64_t{part.first + scales_row / pairs} * (row_bytes / 8) + lane % Unit::kScaleLanes * 16);
    copy_step = Unit::kCopyRows / pairs * row_bytes;
    // Else the compiler keeps the summands of each in registers, which are short.
    asm("" : "+l"(codes), "+l"(scales));
    if (Layout::kResidual) {
      residual_codes = of_codes.planes[1].codes - of_codes.planes[0].codes - p.units * kUnitRowBytes;
      residual_scales = of_scales.planes[1].scales - of_scales.planes[0].scales - p.units * kUnitRowScales;
    }
  }

  // Starts copying the next unit, if there is one, to the slot at `slot` bytes; rows past the block's become zeros. One
  // group of copies in any case.
  __device__ __forceinline__ void copy_next(const Kernel& p, const Part& part, int slot, int lane) {
    if (left > 0) {
      if constexpr (Layout::kWhole) {
        const bool residual = Layout::kResidual && k >= p.units;
        const uint32_t to = slots + slot;
        const uint32_t codes_to = to + Unit::piece_at(lane / Unit::kRowLanes, lane % Unit::kRowLanes);
        const int codes_left = left - lane / Unit::kRowLanes;
        const uint8_t* from = codes + offset + (residual ? residual_codes : 0);
#pragma unroll
        for (int i = 0; i < Unit::kRows / Unit::kCopyRows; ++i) {
          // The permutation of pieces repeats after two rows.
          copy_async16(codes_to + i * Unit::kCopyRows * kUnitRowBytes, from, i * Unit::kCopyRows < codes_left);
          from += copy_step;
        }
        if (lane < Unit::kRows * Unit::kScaleLanes) {
          copy_async16(to + Unit::kScalesAt + lane * 16, scales + offset / 8 + (residual ? residual_scales : 0),
                       lane / Unit::kScaleLanes < left);
        }
      } else {
        copy_ragged<Unit>(p, part, slots + slot, left, k, lane);
      }
    }
    commit_copies();
    k += p.step_units;
    offset += step_offset;
    left -= p.step_tiles * Unit::kRows;
    if (k >= p.tile_units) {
      k -= p.tile_units;
      offset += wrap_offset;
      left -= Unit::kRows;
    }
  }
};

}  // namespace qn::gemv
