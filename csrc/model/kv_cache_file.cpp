// A saved KV cache: a 128-byte header, then the pages in order. All integers and floats are little-endian.
//   0   u8[8]   "QNKVCACH"
//   8   u32     version, 1            12  u32  dtype: 0 f32, 1 f16, 2 bf16
//   16  i64[9]  kPageTokens, seq_len, H, L, Q, KV, D, F, V
//   88  f64[2]  rope_base, rms_norm_eps      104  24 zero bytes
// A page of n positions is [L, 2 (keys, values), KV, n, D]; n is kPageTokens for all but the last page.
// The header tells two shapes of model apart, not two sets of weights.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/file.h"
#include "core/staging.h"
#include "core/status.h"
#include "model/kv_cache.h"

namespace qn {

namespace {

static_assert(std::endian::native == std::endian::little, "the file format is written by memcpy");

constexpr char kMagic[8] = {'Q', 'N', 'K', 'V', 'C', 'A', 'C', 'H'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t dtype;
  int64_t page_tokens, seq_len;
  int64_t H, L, Q, KV, D, F, V;
  double rope_base, eps;
  uint8_t zero[24];
};
static_assert(sizeof(Header) == 128);

Header header_of(const ModelConfig& c, DType dtype, int64_t seq_len) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.dtype = dtype == DType::kF32 ? 0 : dtype == DType::kF16 ? 1 : 2;
  header.page_tokens = kPageTokens;
  header.seq_len = seq_len;
  header.H = c.H, header.L = c.L, header.Q = c.Q, header.KV = c.KV, header.D = c.D, header.F = c.F, header.V = c.V;
  header.rope_base = c.rope_base;
  header.eps = static_cast<double>(c.eps);
  return header;
}

const char* dtype_name(uint32_t dtype) {
  return dtype == 0 ? "float32" : dtype == 1 ? "float16" : dtype == 2 ? "bfloat16" : "an unknown dtype";
}

void check_same(const std::string& path, const char* what, double found, double wanted) {
  if (found == wanted) return;
  fail(Code::kStateMismatch, "%s was saved from another model: its %s is %.10g, this model has %.10g", path.c_str(),
       what, found, wanted);
}

void check_header(const std::string& path, const Header& found, const Header& wanted) {
  if (std::memcmp(found.magic, kMagic, sizeof kMagic) != 0)
    fail(Code::kStateMismatch, "%s is not a saved KV cache", path.c_str());
  if (found.version != kVersion) {
    fail(Code::kStateMismatch, "%s has version %u, this build reads version %u", path.c_str(), found.version, kVersion);
  }
  if (found.dtype != wanted.dtype) {
    fail(Code::kStateMismatch, "%s holds %s, this cache %s", path.c_str(), dtype_name(found.dtype),
         dtype_name(wanted.dtype));
  }
  const auto same = [&](const char* what, int64_t a, int64_t b) {
    check_same(path, what, static_cast<double>(a), static_cast<double>(b));
  };
  same("page size", found.page_tokens, wanted.page_tokens);
  same("hidden_size", found.H, wanted.H);
  same("num_hidden_layers", found.L, wanted.L);
  same("num_attention_heads", found.Q, wanted.Q);
  same("num_key_value_heads", found.KV, wanted.KV);
  same("head_dim", found.D, wanted.D);
  same("intermediate_size", found.F, wanted.F);
  same("vocab_size", found.V, wanted.V);
  check_same(path, "rope_theta", found.rope_base, wanted.rope_base);
  check_same(path, "rms_norm_eps", found.eps, wanted.eps);
}

}  // namespace

// A page in memory is the page of the file where all its positions are in use; else each plane [n, D] of the file lies
// at the begin of a plane [kPageTokens, D]. Planes pass by as many as fit one piece.
void KvCache::save(const std::string& path, const Cpu& cpu) const {
  const Header header = header_of(config_, dtype_, seq_len_);
  AtomicFile file(path);
  file.write(&header, sizeof header);
  const int64_t row = config_.D * dtype_bytes(dtype_), plane = kPageTokens * row, planes = config_.L * 2 * config_.KV;
  Download download(*device_);
  const int64_t most = std::clamp<int64_t>(download.capacity() / plane, 1, planes);
  std::vector<char> packed;
  for (int64_t start = 0; start < seq_len_; start += kPageTokens) {
    cpu.check_cancelled();
    const char* page = pages_[static_cast<size_t>(start / kPageTokens)]->as<char>();
    const int64_t used = std::min(kPageTokens, seq_len_ - start) * row;
    for (int64_t first = 0; first < planes; first += most) {
      const int64_t count = std::min(most, planes - first);
      const auto* from = static_cast<const char*>(download.fetch(page + first * plane, count * plane));
      if (used == plane) {
        file.write(from, count * plane);
        continue;
      }
      packed.resize(static_cast<size_t>(count * used));
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(packed.data() + i * used, from + i * plane, static_cast<size_t>(used));
      }
      file.write(packed.data(), count * used);
    }
  }
  file.commit();
}

void KvCache::restore(const std::string& path, const Cpu& cpu) {
  const File file = File::open_for_reading(path);
  Header header;
  file.read_exact(&header, 0, sizeof header);
  check_header(path, header, header_of(config_, dtype_, 0));
  if (header.seq_len < 0) fail(Code::kStateMismatch, "%s claims %lld tokens", path.c_str(), (long long)header.seq_len);
  if (header.seq_len > max_tokens_) {
    fail(Code::kCacheFull, "%s holds %lld tokens, this cache has room for %lld", path.c_str(),
         (long long)header.seq_len, (long long)max_tokens_);
  }
  const int64_t row = config_.D * dtype_bytes(dtype_), planes = config_.L * 2 * config_.KV;
  const int64_t expected = static_cast<int64_t>(sizeof header) + header.seq_len * planes * row, size = file.size();
  if (size != expected) {
    fail(size < expected ? Code::kTruncated : Code::kStateMismatch, "%s has %lld bytes, its header asks for %lld",
         path.c_str(), (long long)size, (long long)expected);
  }
  // Read aside: a failure half way leaves the cache as it was.
  const int64_t plane = kPageTokens * row;
  Upload upload(*device_);
  const int64_t most = std::clamp<int64_t>(upload.capacity() / plane, 1, planes);
  std::vector<Page> pages;
  std::vector<char> packed;
  int64_t offset = sizeof header;
  for (int64_t start = 0; start < header.seq_len; start += kPageTokens) {
    cpu.check_cancelled();
    pages.push_back(std::make_shared<Buffer>(device_->ledger(), MemoryKind::kCache, page_bytes()));
    const int64_t used = std::min(kPageTokens, header.seq_len - start) * row;
    for (int64_t first = 0; first < planes; first += most) {
      const int64_t count = std::min(most, planes - first);
      upload.begin(count * plane);
      uint8_t* to = upload.take(pages.back()->as<char>() + first * plane, count * plane);
      if (used == plane) {
        file.read_exact(to, offset, count * plane);
      } else {
        packed.resize(static_cast<size_t>(count * used));
        file.read_exact(packed.data(), offset, count * used);
        for (int64_t i = 0; i < count; ++i) {
          std::memcpy(to + i * plane, packed.data() + i * used, static_cast<size_t>(used));
          std::memset(to + i * plane + used, 0, static_cast<size_t>(plane - used));
        }
      }
      upload.send();
      offset += count * used;
    }
  }
  pages_ = std::move(pages);
  shown_.clear();
  seq_len_ = header.seq_len;
}

}  // namespace qn
