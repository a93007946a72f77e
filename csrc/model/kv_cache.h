// Keys and values of one conversation, in pages of kPageTokens positions that are allocated as they are needed and
// shared, copy on write, between forks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "model/config.h"

namespace qn {

constexpr int64_t kPageTokens = 64;

class KvCache {
 public:
  KvCache(std::shared_ptr<Device> device, const ModelConfig& config, int64_t max_tokens, DType dtype);

  int64_t seq_len() const { return seq_len_; }
  int64_t max_tokens() const { return max_tokens_; }
  DType dtype() const { return dtype_; }
  const ModelConfig& config() const { return config_; }
  int64_t bytes() const;  // of the pages this cache refers to (shared ones count in full)

  // Room for `tokens` more, or Error(kCacheFull) with both numbers and nothing changed. Makes the pages it will write
  // its own.
  void reserve(int64_t tokens);
  // Writes k, v f32[T, KV, D] of one layer at positions seq_len .. seq_len + T - 1 (reserve() first).
  void write(int64_t layer, const float* k, const float* v, int64_t T, const Cpu& cpu);  // on the CPU
  // After every layer has written: seq_len += T.
  void advance(int64_t T) { seq_len_ += T; }
  // Page pointers of one layer, for ops/attention.h; valid until the next reserve, truncate or reset.
  void pages(int64_t layer, std::vector<const void*>& k, std::vector<const void*>& v) const;
  // The same for CUDA: arrays on the device that stay where they are for the cache's life, brought up to date here.
  struct DevicePages {
    uint16_t *const *k, *const *v;
  };
  DevicePages device_pages(int64_t layer);

  void truncate(int64_t tokens);  // 0 <= tokens <= seq_len
  void reset() { truncate(0); }
  std::shared_ptr<KvCache> fork() const;

  // A self-describing file, written beside and renamed. restore() refuses another model's shape (kStateMismatch).
  void save(const std::string& path, const Cpu& cpu) const;
  void restore(const std::string& path, const Cpu& cpu);

 private:
  using Page = std::shared_ptr<Buffer>;
  int64_t page_bytes() const;
  int64_t plane_bytes() const;  // one layer's k or v: KV * kPageTokens * D elements

  std::shared_ptr<Device> device_;
  ModelConfig config_;
  int64_t max_tokens_, seq_len_ = 0;
  DType dtype_;
  std::vector<Page> pages_;
  Buffer table_;             // CUDA: pointers [L, 2 (keys, values), most pages]
  std::vector<Page> shown_;  // the pages that the table points to; holds them, so that no address is used twice
};

}  // namespace qn
