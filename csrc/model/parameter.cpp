#include "model/parameter.h"

#include <utility>

#include "core/status.h"

namespace qn {

WeightView Parameter::view() const {
  WeightView view;
  view.storage = storage;
  view.rows = rows;
  view.cols = cols;
  if (storage == Storage::kBnb4) {
    view.bnb4 = {codes.as<uint8_t>(), scales.as<float>(), codebook};
    return view;
  }
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
  if (form == Storage::kBnb4) trainable = false;
  if (is_packed(form)) {
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

void refuse_frozen_form(const Parameter& parameter) {
  if (parameter.storage != Storage::kBnb4) return;
  fail_at(parameter.name, Code::kUnsupported,
          "%s is stored in bitsandbytes' %s, which runs but does not change: convert the model to NVFP4 to train or "
          "overwrite it",
          parameter.name.c_str(), parameter.codebook == Codebook::kNf4 ? "NF4" : "fp4");
}

}  // namespace qn
