// Pages of a cache on device 0, for tests and benchmarks.
#pragma once

#include <algorithm>
#include <vector>

#include "binding/ops/cuda_ops.h"
#include "ops/kv_cache_write.h"

namespace qn {

inline int64_t array_bytes(const Napi::Value& value) {
  return value.IsTypedArray() ? static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength()) : 0;
}

// Pages on the device and the device array of pointers to them.
struct DevicePages {
  std::vector<CudaBuffer> pages;
  CudaBuffer pointers;

  DevicePages() = default;
  explicit DevicePages(const Napi::Value& value) {
    const auto arrays = value.As<Napi::Array>();
    for (uint32_t i = 0; i < arrays.Length(); ++i) {
      const Napi::Value page = arrays.Get(i);
      pages.push_back(on_device(array_data<uint16_t>(page), array_bytes(page)));
    }
    point();
  }
  DevicePages(int64_t count, int64_t page_values) {
    for (int64_t i = 0; i < count; ++i) pages.push_back(random_bf16(page_values));
    point();
  }
  void point() {
    std::vector<uint16_t*> addresses;
    for (const CudaBuffer& page : pages) addresses.push_back(page.as<uint16_t>());
    pointers = on_device(addresses.data(), static_cast<int64_t>(addresses.size() * sizeof(addresses[0])));
  }
  uint16_t* const* get() const { return pointers.as<uint16_t*>(); }
  void download(const Napi::Value& value) const {
    const auto arrays = value.As<Napi::Array>();
    for (uint32_t i = 0; i < arrays.Length(); ++i) pages[i].download(array_data<uint16_t>(arrays.Get(i)));
  }
};

// { position } on the device; nothing without it.
struct DevicePosition {
  CudaBuffer buffer;
  explicit DevicePosition(const Napi::Value& dims) {
    const int64_t none = -1, given = option(dims, "position", none);
    const auto position = static_cast<int32_t>(given);
    if (given != none) buffer = on_device(&position, sizeof(position));
  }
  const int32_t* get() const { return buffer.as<int32_t>(); }
};

inline KvCacheSlots slots_of(const DevicePages& k, const DevicePages& v, const Napi::Value& dims,
                             const DevicePosition& position) {
  return {k.get(), v.get(), option(dims, "pageTokens", 1), option(dims, "offset"), position.get()};
}

// More than any device's L2 holds.
constexpr int64_t kColdBytes = int64_t{256} << 20;

// Sets of pages for a cache of `context` positions that no cache level holds, one after the other.
struct TimedPages {
  std::vector<DevicePages> k, v;
  TimedPages(int64_t context, int64_t KV, int64_t page_tokens, int64_t D) {
    const int64_t pages = (context + page_tokens - 1) / page_tokens, page_values = KV * page_tokens * D;
    const int64_t sets = std::max<int64_t>(1, kColdBytes / (4 * pages * page_values));
    for (int64_t i = 0; i < sets; ++i) {
      k.emplace_back(pages, page_values);
      v.emplace_back(pages, page_values);
    }
  }
  int64_t sets() const { return static_cast<int64_t>(k.size()); }
  const DevicePages& keys(int64_t i) const { return k[static_cast<size_t>(i) % k.size()]; }
  const DevicePages& values(int64_t i) const { return v[static_cast<size_t>(i) % v.size()]; }
};

}  // namespace qn
