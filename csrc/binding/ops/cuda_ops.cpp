#include "binding/ops/cuda_ops.h"

#include <algorithm>
#include <vector>

#include "core/cuda_graph_timer.h"

namespace qn {

namespace {

uint32_t next_random(uint32_t& state) {  // xorshift (Marsaglia 2003)
  state ^= state << 13;
  state ^= state >> 17;
  return state ^= state << 5;
}

// `bytes` on the device that repeat the host's.
CudaBuffer repeated(const void* first, int64_t piece, int64_t bytes) {
  const CudaBuffer seed = on_device(first, piece);
  CudaBuffer all(bytes);
  for (int64_t at = 0; at < bytes; at += piece) {
    cuda_copy(all.as<uint8_t>() + at, seed.as<uint8_t>(), std::min(piece, bytes - at), nullptr);
  }
  return all;  // freeing `seed` waits for the copies
}

// Values repeat after so many bytes: a cache knows addresses, not values, and the host makes few in a short time.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

}  // namespace

CudaBuffer on_device(const void* data, int64_t bytes) {
  CudaBuffer buffer(data ? bytes : 0);
  if (buffer.bytes() > 0) buffer.upload(data);
  return buffer;
}

CudaBuffer random_bytes(int64_t bytes, uint32_t low, uint32_t span) {
  std::vector<uint8_t> first(static_cast<size_t>(std::min(bytes, kPieceBytes)));
  uint32_t state = 2463534242u;
  for (uint8_t& byte : first) byte = static_cast<uint8_t>(low + (next_random(state) >> 8) % span);
  return repeated(first.data(), static_cast<int64_t>(first.size()), bytes);
}

CudaBuffer random_bf16(int64_t count) {
  std::vector<uint16_t> first(static_cast<size_t>(std::min(2 * count, kPieceBytes) / 2));
  uint32_t state = 88172645u;
  // A high byte of 0x3f or 0xbf with any low byte.
  for (uint16_t& value : first) value = static_cast<uint16_t>(0x3f00u | (next_random(state) & 0x80ffu));
  return repeated(first.data(), static_cast<int64_t>(first.size()) * 2, 2 * count);
}

}  // namespace qn
