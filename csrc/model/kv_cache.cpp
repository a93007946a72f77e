#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "core/status.h"

namespace qn {

namespace {

constexpr int64_t kPositionsPerPiece = 16;

int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

void convert(void* out, const float* from, int64_t count, DType dtype) {
  switch (dtype) {
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(out)[i] = f32_to_f16(from[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(out)[i] = f32_to_bf16(from[i]);
      return;
    default:
      std::memcpy(out, from, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace

KvCache::KvCache(std::shared_ptr<Device> device, const ModelConfig& config, int64_t max_tokens, DType dtype)
    : device_(std::move(device)), config_(config), max_tokens_(max_tokens), dtype_(dtype) {
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16)
    fail(Code::kInvalidArgument, "Expected float32, float16 or bfloat16 for the dtype of a KV cache");
  if (max_tokens < 1)
    fail(Code::kInvalidArgument, "Expected maxTokens of at least 1 but received %lld", (long long)max_tokens);
}

int64_t KvCache::bytes() const { return static_cast<int64_t>(pages_.size()) * page_bytes(); }
int64_t KvCache::plane_bytes() const { return config_.KV * kPageTokens * config_.D * dtype_bytes(dtype_); }
// For each layer its keys, then its values: [L, 2, KV, kPageTokens, D].
int64_t KvCache::page_bytes() const { return config_.L * 2 * plane_bytes(); }

void KvCache::reserve(int64_t tokens) {
  if (tokens > max_tokens_ - seq_len_) {
    fail(Code::kCacheFull, "the KV cache holds %lld of %lld tokens and has no room for %lld more", (long long)seq_len_,
         (long long)max_tokens_, (long long)tokens);
  }
  if (tokens <= 0) return;
  // Made complete before it takes the place of pages_: running out of memory on the way changes nothing.
  std::vector<Page> pages = pages_;
  const auto allocate = [this] {
    return std::make_shared<Buffer>(device_->ledger(), MemoryKind::kCache, page_bytes());
  };
  const auto existing = static_cast<int64_t>(pages_.size());
  for (int64_t i = seq_len_ / kPageTokens; i < pages_for(seq_len_ + tokens); ++i) {
    if (i >= existing) {
      pages.push_back(allocate());
      continue;
    }
    const Page& current = pages_[static_cast<size_t>(i)];
    if (current.use_count() == 2) continue;  // ours alone: pages_ and the copy of it here
    Page own = allocate();
    std::memcpy(own->data(), current->data(), static_cast<size_t>(page_bytes()));
    pages[static_cast<size_t>(i)] = std::move(own);
  }
  pages_ = std::move(pages);
}

void KvCache::write(int64_t layer, const float* k, const float* v, int64_t T, const Cpu& cpu) {
  if (pages_for(seq_len_ + T) > static_cast<int64_t>(pages_.size()))
    fail(Code::kInternal, "KvCache::write of %lld tokens without reserve()", (long long)T);
  const int64_t element = dtype_bytes(dtype_), D = config_.D, KV = config_.KV;
  cpu.pool.run(T, kPositionsPerPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = seq_len_ + t, row = position % kPageTokens;
      char* k_plane = pages_[static_cast<size_t>(position / kPageTokens)]->as<char>() + layer * 2 * plane_bytes();
      char* v_plane = k_plane + plane_bytes();
      for (int64_t head = 0; head < KV; ++head) {
        const int64_t offset = (head * kPageTokens + row) * D * element;
        convert(k_plane + offset, k + (t * KV + head) * D, D, dtype_);
        convert(v_plane + offset, v + (t * KV + head) * D, D, dtype_);
      }
    }
  });
}

void KvCache::pages(int64_t layer, std::vector<const void*>& k, std::vector<const void*>& v) const {
  k.clear();
  v.clear();
  for (const Page& page : pages_) {
    const char* k_plane = page->as<char>() + layer * 2 * plane_bytes();
    k.push_back(k_plane);
    v.push_back(k_plane + plane_bytes());
  }
}

void KvCache::truncate(int64_t tokens) {
  if (tokens < 0 || tokens > seq_len_) {
    fail(Code::kInvalidArgument, "Expected 0 to %lld tokens to keep but received %lld", (long long)seq_len_,
         (long long)tokens);
  }
  seq_len_ = tokens;
  pages_.resize(static_cast<size_t>(std::min<int64_t>(pages_for(tokens), static_cast<int64_t>(pages_.size()))));
}

std::shared_ptr<KvCache> KvCache::fork() const { return std::make_shared<KvCache>(*this); }

}  // namespace qn
