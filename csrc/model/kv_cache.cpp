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
  if (device_->is_cuda() && dtype != DType::kBF16) {
    fail(Code::kUnsupported, "a KV cache on CUDA holds 'bf16': no other dtype is implemented there");
  }
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
    // Ours alone: pages_, the copy of it here, and perhaps the table's.
    const bool shown = i < static_cast<int64_t>(shown_.size()) && shown_[static_cast<size_t>(i)] == current;
    if (current.use_count() == (shown ? 3 : 2)) continue;
    Page own = allocate();
    device_->copy(own->data(), current->data(), page_bytes());
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
  if (shown_.size() > pages_.size()) shown_.resize(pages_.size());
}

KvCache::DevicePages KvCache::device_pages(int64_t layer) {
  const int64_t most = pages_for(max_tokens_);
  if (!table_) table_ = Buffer(device_->ledger(), MemoryKind::kCache, config_.L * 2 * most * 8);
  if (shown_ != pages_) {
    size_t first = 0;
    while (first < shown_.size() && first < pages_.size() && shown_[first] == pages_[first]) ++first;
    if (const size_t count = pages_.size() - first; count > 0) {
      std::vector<char*> columns;  // [L, 2, count]
      for (int64_t plane = 0; plane < config_.L * 2; ++plane) {
        for (size_t i = first; i < pages_.size(); ++i) {
          columns.push_back(pages_[i]->as<char>() + plane * plane_bytes());
        }
      }
      const auto width = static_cast<int64_t>(count) * 8;
      device_->cuda()->copy_in_rows(table_.as<char*>() + first, most * 8, columns.data(), width, width, config_.L * 2);
    }
    shown_ = pages_;
  }
  uint16_t** k = table_.as<uint16_t*>() + layer * 2 * most;
  return {k, k + most};
}

std::shared_ptr<KvCache> KvCache::fork() const {
  auto fork = std::make_shared<KvCache>(device_, config_, max_tokens_, dtype_);
  fork->seq_len_ = seq_len_;
  fork->pages_ = pages_;
  return fork;
}

}  // namespace qn
