// One named tensor of the model: its stored form, and where training hangs what it adds to it.
#pragma once

#include <string>

#include "core/memory.h"
#include "model/config.h"
#include "ops/weight_view.h"

namespace qn {

struct Parameter {
  std::string name;
  uint32_t id = 0;  // index in parameter_specs(): addresses random bits and state
  int64_t rows = 0, cols = 0;
  bool is_vector = false;
  bool trainable = true;
  uint64_t overwrites = 0;  // how often its values were replaced from outside, so that a master can follow

  Storage storage = Storage::kF32;  // a vector is dense, cols % 16 != 0 never kNvfp4, % 64 never kBnb4
  Buffer dense;                     // f32, f16 or bf16 [rows, cols] when storage is dense
  Buffer codes, scales;  // NVFP4: u8[rows, cols/2], e4m3[rows, cols/16]; kBnb4: scales are absmax f32[rows, cols/64]
  Codebook codebook = Codebook::kNf4;  // kBnb4
  bool two_level = true;               // false: global_scale stays exactly 1 (the prior system's .dat layout)
  float global_scale = 1.0f;
  Buffer residual_codes, residual_scales;  // NVFP4 of what the codes miss, global = global_scale / 8
  bool residual_in_forward = true;         // whether view() shows the residual

  int64_t count() const { return rows * cols; }
  bool shows_residual() const { return residual_codes && residual_in_forward; }
  WeightView view() const;
  // Gives an NVFP4 parameter its residual buffers.
  void allocate_residual(MemoryLedger& ledger, bool zeroed);
  // Allocates the buffers of `storage` (contents uninitialised). kBnb4 is not trainable from then on.
  void allocate(MemoryLedger& ledger, Storage form);
  void release();
};

// Throws kUnsupported for a parameter whose form only holds what a file had: kBnb4.
void refuse_frozen_form(const Parameter& parameter);

}  // namespace qn
