#include "ops/weight_view.h"

namespace qn {

namespace {
Nvfp4View slice(Nvfp4View view, int64_t begin, int64_t cols) {
  if (!view.codes) return view;
  view.codes += begin * (cols / 2);
  view.scales += begin * (cols / 16);
  return view;
}
}  // namespace

WeightView WeightView::slice_rows(int64_t begin, int64_t count) const {
  WeightView part = *this;
  part.rows = count;
  if (dense) {
    const int64_t element = storage == Storage::kF32 ? 4 : 2;
    part.dense = static_cast<const char*>(dense) + begin * cols * element;
  }
  part.packed = slice(packed, begin, cols);
  part.residual = slice(residual, begin, cols);
  if (bnb4.codes) {
    part.bnb4.codes += begin * (cols / 2);
    part.bnb4.absmax += begin * (cols / kBnb4BlockSize);
  }
  return part;
}

}  // namespace qn
