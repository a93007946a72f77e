// What a CPU op runs on: a thread pool, an instruction set and a cancel token. Takes the place a CUDA op gives its
// stream.
#pragma once

#include "core/cancel.h"
#include "core/thread_pool.h"

namespace qn {

// Ordered: a level includes the ones below it on its architecture. kPortable is the truth the others are tested
// against.
enum class Isa { kPortable, kNeon, kAvx2, kAvx512 };

const char* isa_name(Isa isa);
// The best level this processor and operating system run.
Isa detect_isa();
// "portable", "neon", "avx2", "avx512"; Error(kUnsupported) if this processor lacks it, Error(kInvalidArgument) if
// unknown.
Isa isa_from_name(const char* name);

// Cores that this process may keep busy: its affinity mask, and on Linux the CPU quota of its control group, rounded
// up. A container with two cores on a large host says 2.
int available_cores();

struct Cpu {
  ThreadPool& pool;
  Isa isa;
  const CancelToken* cancel = nullptr;  // may be null

  void check_cancelled() const {
    if (cancel) cancel->throw_if_cancelled();
  }
};

}  // namespace qn
