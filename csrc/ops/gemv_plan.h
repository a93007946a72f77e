// How a launch of gemv.cu is laid out: how many tokens it takes, how long its warps' rings are, which outputs its
// blocks have and what lies in their shared memory. Arithmetic alone, without CUDA.
#pragma once

#include <cstdint>

#include "ops/gemv.h"

namespace qn::gemv {

// A unit is what a warp copies and multiplies at a time: rows_of rows of this many columns.
constexpr int kUnitColumns = 512;
constexpr int kUnitRowBytes = kUnitColumns / 2, kUnitRowScales = kUnitColumns / 16;
constexpr int kUnitXBytes = kUnitColumns * 2;  // of one token
// One token: what lanes without a column of operand b read: columns of a unit, in banks that the others do not read.
constexpr int kZeroBytes = kUnitXBytes + 128;

constexpr int kNormWarps = 16;  // at most, of a row's sum of squares

constexpr int rows_of(bool one_token) { return one_token ? 8 : 16; }
constexpr int warps_of(bool one_token) { return one_token ? 16 : 8; }

struct Device {
  int64_t multiprocessors;
  int64_t shared_bytes;  // of a block, that a launch may ask for
};

struct Shape {
  int64_t outputs[kGemvMatrices];  // rows of y by matrix; with swiglu those of the first alone
  int64_t K, T;
  bool residual;  // of any matrix
  bool swiglu, overlaps;
};

struct Plan {
  int tokens;  // of the shape's; 0: not even one fits
  int stages;  // units in flight a warp
  bool whole;  // whether rows end with a unit
  int units;   // of a row
  int blocks_end[kGemvMatrices];
  int64_t shared_bytes;
  int warps() const { return warps_of(tokens == 1); }
};

// Whether one token of K columns fits, whatever else.
bool fits(int64_t K, const Device& device);

// The longest ring that fits; fewer tokens when none does.
Plan plan(const Shape& shape, const Device& device);

}  // namespace qn::gemv
