// Bytes between the host and a device's memory, in pieces: through pinned memory where that is a GPU's; on the CPU the
// pieces lie where they belong and nothing is copied. Used on the lane; pool threads may fill and read the pieces.
#pragma once

#include <array>
#include <cstdint>

#include "core/cuda_context.h"
#include "core/device.h"

namespace qn {

// To the device. A group of pieces is filled while the groups before it are still being copied.
class Upload {
 public:
  explicit Upload(Device& device) : device_(device) {}
  ~Upload();  // waits for the copies
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  // Most bytes of one group, each piece rounded up to 64.
  int64_t capacity() const;

  // begin(bytes in all), then take() every piece, fill them, send().
  void begin(int64_t bytes);
  // Where to write `bytes` that belong at `to`: all of them, before send().
  uint8_t* take(void* to, int64_t bytes);
  void send();

 private:
  static constexpr int kSlots = 3, kMostPieces = 4;
  struct Slot {
    PinnedBuffer memory;
    CudaEvent copied;
  };
  struct Piece {
    void* to;
    const uint8_t* from;
    int64_t bytes;
  };

  Device& device_;
  std::array<Slot, kSlots> slots_;
  int slot_ = 0;
  int64_t used_ = 0;  // bytes of the current slot
  std::array<Piece, kMostPieces> pieces_;
  int piece_count_ = 0;
};

// From the device.
class Download {
 public:
  explicit Download(Device& device) : device_(device) {}

  // Most bytes of one piece.
  int64_t capacity() const;
  // `bytes` of device memory, readable until the next call.
  const void* fetch(const void* from, int64_t bytes);

 private:
  Device& device_;
  PinnedBuffer memory_;
};

}  // namespace qn
