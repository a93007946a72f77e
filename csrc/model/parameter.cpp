#include "model/parameter.h"

#include <utility>

namespace qn {

WeightView Parameter::view() const {
  WeightView view;
  view.storage = storage;
  view.rows = rows;
  view.cols = cols;
  if (storage != Storage::kNvfp4) {
    view.dense = dense.data();
    return view;
  }
  view.packed = {codes.as<uint8_t>(), scales.as<uint8_t>(), global_scale};
  if (shows_residual()) {
    view.residual = {residual_codes.as<uint8_t>(), residual_scales.as<uint8_t>(), global_scale / 8};
  }
  return view;
}

void Parameter::release() {
  for (Buffer* buffer : {&dense, &codes, &scales, &residual_codes, &residual_scales}) *buffer = Buffer();
}

void Parameter::allocate(MemoryLedger& ledger, Storage form) {
  release();
  storage = form;
  if (form == Storage::kNvfp4) {
    codes = Buffer(ledger, MemoryKind::kWeights, count() / 2);
    scales = Buffer(ledger, MemoryKind::kScales, count() / 16);
  } else {
    dense = Buffer(ledger, MemoryKind::kWeights, count() * (form == Storage::kF32 ? 4 : 2));
  }
}

void Parameter::allocate_residual(MemoryLedger& ledger, bool zeroed) {
  Buffer code_bytes(ledger, MemoryKind::kWeights, count() / 2, zeroed);
  residual_scales = Buffer(ledger, MemoryKind::kScales, count() / 16, zeroed);
  residual_codes = std::move(code_bytes);
}

}  // namespace qn
