#include "model/slab.h"

namespace qn {

namespace {

int64_t width_of(const Parameter& p) { return p.storage == Storage::kF32 ? 4 : 2; }

}  // namespace

int64_t longest_slab(const Parameter& p, const Upload& upload) {
  if (!is_packed(p.storage)) return upload.capacity() / width_of(p);
  const int64_t pairs = p.residual_codes ? 2 : 1;          // of codes and scales: 9 bytes for 16 elements
  return (upload.capacity() - 4 * 64) / (pairs * 9) * 16;  // four pieces are rounded up
}

Slab::Slab(const Parameter& p, int64_t begin, int64_t end, bool residual, Upload& upload)
    : begin_(begin), width_(width_of(p)) {
  const int64_t count = end - begin, codes = count / 2, scales = count / 16;
  if (!is_packed(p.storage)) {
    upload.begin(count * width_);
    dense_ = upload.take(p.dense.as<uint8_t>() + begin * width_, count * width_);
    return;
  }
  const bool two = residual && p.residual_codes;
  upload.begin((two ? 2 : 1) * (Arena::aligned(codes) + Arena::aligned(scales)));
  codes_ = upload.take(p.codes.as<uint8_t>() + begin / 2, codes);
  scales_ = upload.take(p.scales.as<uint8_t>() + begin / 16, scales);
  if (!two) return;
  residual_codes_ = upload.take(p.residual_codes.as<uint8_t>() + begin / 2, codes);
  residual_scales_ = upload.take(p.residual_scales.as<uint8_t>() + begin / 16, scales);
}

}  // namespace qn
