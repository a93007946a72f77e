// A whole buffer of a device where the host can work on it: its own memory on the CPU, of a GPU a copy. For what is
// small or rare; core/staging.h moves what is large.
#pragma once

#include <memory>

#include "core/device.h"

namespace qn {

class HostBytes {
 public:
  enum class Start : uint8_t { kContents, kUninitialised };

  // `buffer` must outlive this. With kUninitialised the host writes every byte, so none is fetched.
  HostBytes(Device& device, const Buffer& buffer, Start start = Start::kContents) : device_(device), buffer_(buffer) {
    if (!device.cuda()) return;
    copy_ = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(buffer.bytes()));
    if (start == Start::kContents) device.copy_out(copy_.get(), buffer.data(), buffer.bytes());
  }
  template <typename T>
  T* as() const {
    return copy_ ? reinterpret_cast<T*>(copy_.get()) : buffer_.as<T>();
  }
  // Gives the buffer what the host wrote.
  void write_back() {
    if (copy_) device_.copy_in(buffer_.data(), copy_.get(), buffer_.bytes());
  }

 private:
  Device& device_;
  const Buffer& buffer_;
  std::unique_ptr<char[]> copy_;
};

}  // namespace qn
