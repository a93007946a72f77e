#include "core/staging.h"

#include <algorithm>

#include "core/status.h"

namespace qn {

namespace {

// Long enough that a copy hides its start and all threads have work, short enough to pin in a few milliseconds.
constexpr int64_t kSlotBytes = 16 << 20;

// Far from overflow when a caller turns it into elements.
constexpr int64_t kUnbounded = INT64_MAX / 64;

int64_t capacity_of(Device& device) { return device.cuda() ? kSlotBytes : kUnbounded; }

}  // namespace

int64_t Upload::capacity() const { return capacity_of(device_); }
int64_t Download::capacity() const { return capacity_of(device_); }

Upload::~Upload() {
  for (Slot& slot : slots_) {
    try {
      slot.copied.wait();
    } catch (const Error&) {
      // The next use of the device reports it.
    }
  }
}

void Upload::begin(int64_t bytes) {
  if (!device_.cuda()) return;
  if (bytes > kSlotBytes) fail(Code::kInternal, "%lld bytes are too many for one upload", (long long)bytes);
  if (used_ + bytes > kSlotBytes) {
    slot_ = (slot_ + 1) % kSlots;
    used_ = 0;
    slots_[static_cast<size_t>(slot_)].copied.wait();
  }
  Slot& slot = slots_[static_cast<size_t>(slot_)];
  if (slot.memory.bytes() == 0) slot.memory = PinnedBuffer(kSlotBytes);
}

uint8_t* Upload::take(void* to, int64_t bytes) {
  if (!device_.cuda()) return static_cast<uint8_t*>(to);
  const Slot& slot = slots_[static_cast<size_t>(slot_)];
  if (piece_count_ == kMostPieces || used_ + bytes > slot.memory.bytes()) {
    fail(Code::kInternal, "an upload of %lld bytes was not begun", (long long)bytes);
  }
  uint8_t* from = slot.memory.as<uint8_t>() + used_;
  used_ += Arena::aligned(bytes);
  pieces_[static_cast<size_t>(piece_count_++)] = {to, from, bytes};
  return from;
}

void Upload::send() {
  if (!device_.cuda()) return;
  for (int i = 0; i < piece_count_; ++i) {
    const Piece& piece = pieces_[static_cast<size_t>(i)];
    device_.cuda()->copy_in(piece.to, piece.from, piece.bytes);
  }
  piece_count_ = 0;
  slots_[static_cast<size_t>(slot_)].copied.record(*device_.cuda());
}

const void* Download::fetch(const void* from, int64_t bytes) {
  if (!device_.cuda()) return from;
  if (bytes > kSlotBytes) fail(Code::kInternal, "%lld bytes are too many for one download", (long long)bytes);
  if (memory_.bytes() == 0) memory_ = PinnedBuffer(kSlotBytes);
  device_.copy_out(memory_.as<void>(), from, bytes);
  return memory_.as<void>();
}

}  // namespace qn
