#include "model/host_rows.h"

namespace qn {

namespace {

int64_t width_of(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

int64_t arena_bytes(const Parameter& p, int64_t rows) {
  const int64_t count = rows * p.cols;
  if (!is_packed(p.storage)) return Arena::aligned(count * width_of(p.storage));
  const int64_t packed = Arena::aligned(count / 2) + Arena::aligned(count / 16);
  return p.shows_residual() ? 2 * packed : packed;
}

}  // namespace

HostRows::HostRows(Device& device, const Parameter& parameter, int64_t most)
    : device_(device),
      parameter_(parameter),
      arena_(device.host_ledger(), MemoryKind::kScratch, device.cuda() ? arena_bytes(parameter, most) : 0) {}

WeightView HostRows::rows(int64_t begin, int64_t count) {
  WeightView view = parameter_.view().slice_rows(begin, count);
  if (!device_.cuda()) return view;
  arena_.rewind(0);
  const int64_t elements = count * view.cols;
  const auto fetch = [&](const void* from, int64_t bytes) {
    auto* to = arena_.take<uint8_t>(bytes);
    device_.copy_out(to, from, bytes);
    return to;
  };
  if (view.dense) view.dense = fetch(view.dense, elements * width_of(view.storage));
  for (Nvfp4View* packed : {&view.packed, &view.residual}) {
    if (!packed->codes) continue;
    packed->codes = fetch(packed->codes, elements / 2);
    packed->scales = fetch(packed->scales, elements / 16);
  }
  if (view.bnb4.codes) {
    view.bnb4.codes = fetch(view.bnb4.codes, elements / 2);
    view.bnb4.absmax = reinterpret_cast<const float*>(fetch(view.bnb4.absmax, elements / 16));
  }
  return view;
}

}  // namespace qn
