// A place to compute: its lane, threads, instruction set and memory ledger. One per distinct `device` + `threads` of a
// JS environment; models, caches and optimizers hold it by shared_ptr.
#pragma once

#include <memory>

#include "core/cpu.h"
#include "core/lane.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace qn {

class Device {
 public:
  // threads = 0: available_cores().
  Device(int threads, Isa isa);

  MemoryLedger& ledger() { return ledger_; }
  Lane& lane() { return lane_; }
  Cpu cpu(const CancelToken* cancel = nullptr) { return Cpu{pool_, isa_, cancel}; }
  int threads() const { return pool_.threads(); }
  Isa isa() const { return isa_; }

 private:
  MemoryLedger ledger_;
  Isa isa_;
  ThreadPool pool_;
  Lane lane_;  // last: stops before what its jobs use
};

}  // namespace qn
