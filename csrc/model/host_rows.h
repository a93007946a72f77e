// Rows of a parameter where the host can read them.
#pragma once

#include "core/device.h"
#include "model/parameter.h"

namespace qn {

// On the CPU the parameter itself; of a GPU copies, in memory charged to the host ledger (kScratch).
class HostRows {
 public:
  // `most` rows at a time. `parameter` must outlive this.
  HostRows(Device& device, const Parameter& parameter, int64_t most);
  // parameter.view().slice_rows(begin, count), valid until the next call.
  WeightView rows(int64_t begin, int64_t count);

 private:
  Device& device_;
  const Parameter& parameter_;
  Arena arena_;
};

}  // namespace qn
