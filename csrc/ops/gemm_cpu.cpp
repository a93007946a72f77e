#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "ops/gemm.h"

namespace qn {

namespace {

// Largest tile of c that one piece of work computes: its packed operands, 0.7 MiB together, stay in L2.
constexpr int64_t kMaxRows = 336, kMaxCols = 384;
// Decoded rows on their way into panels: one panel of at most 32 lanes, or a few rows of kMaxCols.
constexpr int64_t kRowFloats = 32 * kGemmDepth;
static_assert(((kMaxRows + kMaxCols) * kGemmDepth + kRowFloats) * 4 <= kWorkerScratchBytes);

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The part of an operand that is packed at once, and where to.
struct Block {
  int64_t lane, lanes;
  int64_t k, depth;
  int64_t width;  // lanes of a panel
  float* panels;  // out f32[ceil(lanes / width)][depth][width]
  float* row;     // scratch f32[kRowFloats]
};

void pack_lanes_are_rows(const GemmOperand& operand, const Block& block, const LinearKernels& kernels) {
  float* panel = block.panels;
  for (int64_t lane = 0; lane < block.lanes; lane += block.width, panel += block.width * block.depth) {
    const int64_t count = std::min(block.width, block.lanes - lane);
    const float* source = block.row;
    int64_t stride = block.depth;
    if (operand.matrix.storage == Storage::kF32) {
      source = static_cast<const float*>(operand.matrix.dense) + (block.lane + lane) * operand.stride + block.k;
      stride = operand.stride;
    } else {
      for (int64_t i = 0; i < count; ++i) {
        decode_row(block.row + i * block.depth, operand.matrix, operand.stride, block.lane + lane + i, block.k,
                   block.depth, kernels);
      }
    }
    kernels.transpose(panel, block.width, source, stride, count, block.depth);
  }
}

void pack_lanes_are_columns(const GemmOperand& operand, const Block& block, const LinearKernels& kernels) {
  // A few depths at a time: panels lie a multiple of 2 KiB apart, so writing one depth of each in turn would meet the
  // same few sets of the cache.
  constexpr int64_t kGroup = 16;
  static_assert(kGroup * kMaxCols <= kRowFloats);
  for (int64_t k = 0; k < block.depth; k += kGroup) {
    const int64_t depth = std::min(kGroup, block.depth - k);
    const float* source = block.row;
    int64_t stride = block.lanes;
    if (operand.matrix.storage == Storage::kF32) {
      source = static_cast<const float*>(operand.matrix.dense) + (block.k + k) * operand.stride + block.lane;
      stride = operand.stride;
    } else {
      for (int64_t i = 0; i < depth; ++i) {
        decode_row(block.row + i * stride, operand.matrix, operand.stride, block.k + k + i, block.lane, block.lanes,
                   kernels);
      }
    }
    kernels.copy(block.panels + k * block.width, block.width * block.depth, block.width, source, stride, block.lanes,
                 depth);
  }
}

void pack(const GemmOperand& operand, const Block& block, const LinearKernels& kernels) {
  if (operand.depth_is_columns)
    pack_lanes_are_rows(operand, block, kernels);
  else
    pack_lanes_are_columns(operand, block, kernels);
}

struct Tile {
  int64_t row, rows, col, cols;
};

void multiply_tile(const GemmArgs& args, const Tile& tile, float* scratch, const LinearKernels& kernels) {
  const int64_t tile_rows = kernels.tile_rows, tile_cols = kernels.tile_cols;
  float* a = scratch;
  float* b = a + round_up(tile.rows, tile_rows) * kGemmDepth;
  float* row = b + round_up(tile.cols, tile_cols) * kGemmDepth;
  for (int64_t k = 0; k < args.depth; k += kGemmDepth) {
    const int64_t depth = std::min(kGemmDepth, args.depth - k);
    pack(args.b, {tile.col, tile.cols, k, depth, tile_cols, b, row}, kernels);
    pack(args.a, {tile.row, tile.rows, k, depth, tile_rows, a, row}, kernels);
    const bool accumulate = args.accumulate || k > 0;
    for (int64_t j = 0; j < tile.cols; j += tile_cols) {
      for (int64_t i = 0; i < tile.rows; i += tile_rows) {
        kernels.multiply(args.c + (tile.row + i) * args.c_stride + tile.col + j, args.c_stride, a + i * depth,
                         b + j * depth, depth, std::min(tile_rows, tile.rows - i), std::min(tile_cols, tile.cols - j),
                         accumulate);
      }
    }
  }
}

// Equal parts of at most `most`, whole tiles each.
int64_t part(int64_t total, int64_t most, int64_t tile) {
  const int64_t limit = std::max(tile, most / tile * tile);
  return round_up(ceil_div(total, ceil_div(total, limit)), tile);
}

}  // namespace

void decode_row(float* out, const WeightView& w, int64_t stride, int64_t row, int64_t column, int64_t count,
                const LinearKernels& kernels) {
  const int64_t at = row * stride + column;
  switch (w.storage) {
    case Storage::kF32:
      std::memcpy(out, static_cast<const float*>(w.dense) + at, count * sizeof(float));
      return;
    case Storage::kF16:
      return kernels.decode_f16(out, static_cast<const uint16_t*>(w.dense) + at, count);
    case Storage::kBF16:
      return kernels.decode_bf16(out, static_cast<const uint16_t*>(w.dense) + at, count);
    case Storage::kNvfp4:
      kernels.decode_nvfp4(out, w.packed.codes + at / 2, w.packed.scales + at / 16, w.packed.global_scale, count,
                           false);
      if (w.has_residual()) {
        kernels.decode_nvfp4(out, w.residual.codes + at / 2, w.residual.scales + at / 16, w.residual.global_scale,
                             count, true);
      }
      return;
    case Storage::kBnb4:
      return kernels.decode_bnb4(out, w.bnb4.codes + at / 2, w.bnb4.absmax + at / kBnb4BlockSize,
                                 bnb4_values(w.bnb4.codebook), at % kBnb4BlockSize, count);
  }
}

void gemm_cpu(const GemmArgs& args, const Cpu& cpu) {
  if (args.rows == 0 || args.cols == 0) return;
  if (args.depth == 0) {
    if (args.accumulate) return;
    for (int64_t i = 0; i < args.rows; ++i) std::memset(args.c + i * args.c_stride, 0, args.cols * sizeof(float));
    return;
  }
  const LinearKernels& kernels = linear_kernels(cpu.isa);
  // Large tiles pack least; smaller ones keep every thread busy. The cut changes no bit of the result.
  int64_t most_rows = kMaxRows, most_cols = kMaxCols;
  int64_t rows, cols, row_tiles, col_tiles;
  for (;;) {
    rows = part(args.rows, most_rows, kernels.tile_rows);
    cols = part(args.cols, most_cols, kernels.tile_cols);
    row_tiles = ceil_div(args.rows, rows);
    col_tiles = ceil_div(args.cols, cols);
    const bool enough = cpu.pool.threads() == 1 || row_tiles * col_tiles >= 3 * cpu.pool.threads();
    if (enough || (rows <= kernels.tile_rows && cols <= kernels.tile_cols)) break;
    if (cols > kernels.tile_cols && (cols >= rows || rows <= kernels.tile_rows))
      most_cols = cols / 2;
    else
      most_rows = rows / 2;
  }
  cpu.pool.run(row_tiles * col_tiles, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      cpu.check_cancelled();
      const int64_t row = i % row_tiles * rows, col = i / row_tiles * cols;
      const Tile tile{row, std::min(rows, args.rows - row), col, std::min(cols, args.cols - col)};
      multiply_tile(args, tile, cpu.pool.scratch<float>(worker), kernels);
    }
  });
}

}  // namespace qn
