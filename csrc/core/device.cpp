#include "core/device.h"

namespace qn {

Device::Device(int threads, Isa isa) : isa_(isa), pool_(threads > 0 ? threads : available_cores(), ledger_) {}

}  // namespace qn
