// A run of elements of a parameter in host memory, on its way to the parameter's buffers.
#pragma once

#include "core/staging.h"
#include "model/parameter.h"

namespace qn {

// Elements whose stored bytes fit one upload.
int64_t longest_slab(const Parameter& parameter, const Upload& upload);

// Elements [begin, end), whole blocks, of the parameter's values, or codes and scales, and with `residual` of its
// residual if it has one: to be filled whole before upload.send(). The functions below give the place of an element.
class Slab {
 public:
  Slab(const Parameter& parameter, int64_t begin, int64_t end, bool residual, Upload& upload);

  uint8_t* dense(int64_t element) const { return dense_ + (element - begin_) * width_; }
  uint8_t* codes(int64_t element) const { return codes_ + (element - begin_) / 2; }
  uint8_t* scales(int64_t element) const { return scales_ + (element - begin_) / 16; }
  uint8_t* residual_codes(int64_t element) const { return residual_codes_ + (element - begin_) / 2; }
  uint8_t* residual_scales(int64_t element) const { return residual_scales_ + (element - begin_) / 16; }

 private:
  int64_t begin_, width_;
  uint8_t *dense_ = nullptr, *codes_ = nullptr, *scales_ = nullptr, *residual_codes_ = nullptr,
          *residual_scales_ = nullptr;
};

}  // namespace qn
