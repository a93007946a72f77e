#include "core/device.h"

#include <algorithm>
#include <thread>

namespace qn {

namespace {
int resolve_threads(int threads) {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}
}  // namespace

Device::Device(int threads, Isa isa) : isa_(isa), pool_(resolve_threads(threads), ledger_) {}

}  // namespace qn
