// Blocks of GGUF files, in which scales and values lie side by side (ggml's block_nvfp4 and block_q8_0).
//
//   NVFP4  64 columns in 36 bytes: 4 E4M3 scales, then 8 code bytes for each of them. Of 16 columns, byte j has column
//   j
//          in its low nibble and column j + 8 in its high one: unlike nvfp4.h, where neighbours share a byte.
//   Q8_0   32 columns in 34 bytes: an f16 scale, then 32 signed bytes:   value = f16(scale) · byte.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "format/nvfp4.h"

namespace qn {

constexpr int64_t kGgmlNvfp4Columns = 64, kGgmlNvfp4Bytes = 36;
constexpr int64_t kGgmlQ8Columns = 32, kGgmlQ8Bytes = 34;
constexpr int64_t kGgmlNvfp4Scales = kGgmlNvfp4Columns / kBlockSize;

// The byte of nvfp4.h that holds columns 2j and 2j + 1 of a block of 16, from its 8 bytes of ggml.
constexpr uint8_t ggml_code_pair(const uint8_t* block, int j) {
  const int even = 2 * j % 8, shift = j < 4 ? 0 : 4;
  return pack_e2m1((block[even] >> shift) & 15u, (block[even + 1] >> shift) & 15u);
}

constexpr uint8_t kGgmlWorkedExample[8] = {0xA1, 0xB2, 0xC3, 0xD4, 0xE5, 0xF6, 0x87, 0x98};
static_assert(ggml_code_pair(kGgmlWorkedExample, 0) == 0x21 && ggml_code_pair(kGgmlWorkedExample, 3) == 0x87 &&
                  ggml_code_pair(kGgmlWorkedExample, 4) == 0xBA && ggml_code_pair(kGgmlWorkedExample, 7) == 0x98,
              "columns 0 to 7 are the low nibbles 1 to 8, columns 8 to 15 the high nibbles A to 9");

// codes u8[count / 2] and scales e4m3[count / 16] of whole blocks. 0x7F is NaN elsewhere and zero in ggml.
inline void unpack_ggml_nvfp4(uint8_t* codes, uint8_t* scales, const uint8_t* blocks, int64_t count) {
  for (int64_t i = 0; i < count / kGgmlNvfp4Columns; ++i, blocks += kGgmlNvfp4Bytes) {
    for (int64_t s = 0; s < kGgmlNvfp4Scales; ++s) {
      const uint8_t* block = blocks + kGgmlNvfp4Scales + s * (kBlockSize / 2);
      *scales++ = blocks[s] == 0x7f ? uint8_t{0} : blocks[s];
      for (int j = 0; j < kBlockSize / 2; ++j) *codes++ = ggml_code_pair(block, j);
    }
  }
}

// The blocks of codes u8[count / 2] and scales e4m3[count / 16].
inline void pack_ggml_nvfp4(uint8_t* blocks, const uint8_t* codes, const uint8_t* scales, int64_t count) {
  for (int64_t i = 0; i < count / kGgmlNvfp4Columns; ++i) {
    std::memcpy(blocks, scales, kGgmlNvfp4Scales);
    blocks += kGgmlNvfp4Scales;
    scales += kGgmlNvfp4Scales;
    for (int64_t s = 0; s < kGgmlNvfp4Scales; ++s, codes += kBlockSize / 2) {
      for (int j = 0; j < kBlockSize / 4; ++j) {
        // Columns 2j and 2j + 1, and those eight further on.
        const uint8_t low = codes[j], high = codes[j + 4];
        *blocks++ = pack_e2m1(low & 15u, high & 15u);
        *blocks++ = pack_e2m1(low >> 4, high >> 4);
      }
    }
  }
}

// values f32[count] of whole blocks, exact.
inline void unpack_ggml_q8_0(float* values, const uint8_t* blocks, int64_t count) {
  for (int64_t i = 0; i < count / kGgmlQ8Columns; ++i, blocks += kGgmlQ8Bytes) {
    uint16_t bits;
    std::memcpy(&bits, blocks, sizeof(bits));
    const float scale = f16_to_f32(bits);
    for (int64_t j = 0; j < kGgmlQ8Columns; ++j)
      *values++ = scale * static_cast<float>(static_cast<int8_t>(blocks[2 + j]));
  }
}

// The blocks of finite values, byte for byte those of ggml: the scale is amax / 127, a byte x / scale to nearest,
// halves away from zero. A scale that f16 has not becomes an infinity.
inline void pack_ggml_q8_0(uint8_t* blocks, const float* values, int64_t count) {
  for (int64_t i = 0; i < count / kGgmlQ8Columns; ++i, blocks += kGgmlQ8Bytes, values += kGgmlQ8Columns) {
    uint32_t largest = 0;
    for (int64_t j = 0; j < kGgmlQ8Columns; ++j) {
      const uint32_t magnitude = __builtin_bit_cast(uint32_t, values[j]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = __builtin_bit_cast(float, largest) / 127.0f, reciprocal = 1.0f / scale;
    const float inverse = reciprocal <= 0x1.fffffep127f ? reciprocal : 0.0f;
    const uint16_t bits = f32_to_f16(scale);
    std::memcpy(blocks, &bits, sizeof(bits));
    int32_t code[kGgmlQ8Columns];
    for (int64_t j = 0; j < kGgmlQ8Columns; ++j) {
      const float scaled = values[j] * inverse;
      const auto whole = static_cast<int32_t>(scaled);
      const float rest = scaled - static_cast<float>(whole);
      code[j] = whole + static_cast<int32_t>(rest >= 0.5f) - static_cast<int32_t>(rest <= -0.5f);
    }
    for (int64_t j = 0; j < kGgmlQ8Columns; ++j) blocks[2 + j] = static_cast<uint8_t>(code[j]);
  }
}

}  // namespace qn
