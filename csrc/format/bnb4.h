// bitsandbytes' 4-bit weights, NF4 and the one that it calls fp4: the second packed form that products read as it is.
//
// A tensor [N, K] has codes u8[N, K/2] and the largest magnitude of every 64 consecutive columns f32[N, K/64]:
//
//   value = table[code] · absmax, rounded once
//
// In memory the LOW nibble is the EVEN column, as in nvfp4.h. In files the first element is in the HIGH nibble, blocks
// run over the flattened tensor (K % 64 == 0 keeps them within rows) and may be longer; loading swaps and repeats.
// Worked example: {1, -1} in NF4 under absmax 1 is {15, 0}: byte 0xF0 in a file and 0x0F in memory.
#pragma once

#include <cstdint>

namespace qn {

enum class Codebook : uint8_t { kNf4, kFp4 };

constexpr int64_t kBnb4BlockSize = 64;

// Quantiles of a normal distribution, in ascending order (bitsandbytes, get_4bit_type).
constexpr float kNf4Values[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// {0, .0625, 8, 12, 4, 6, 2, 3} / 12 in f32, negated by bit 3, except that code 8 is a plain zero: neither the order
// nor the magnitudes of E2M1.
constexpr float kFp4Values[16] = {
    0.0f, 0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};

// The sixteen values of a codebook, on the host.
constexpr const float* bnb4_values(Codebook codebook) { return codebook == Codebook::kNf4 ? kNf4Values : kFp4Values; }

// What the low four bits stand for, on the host.
constexpr float bnb4_to_f32(uint32_t code, float absmax, Codebook codebook) {
  return bnb4_values(codebook)[code & 15u] * absmax;
}

// Between the order of files and that of memory.
constexpr uint8_t swap_nibbles(uint8_t pair) { return static_cast<uint8_t>(pair << 4 | pair >> 4); }

// One absmax of a tensor that was quantised twice; `nested_absmax` is that of its 256. Rounds twice, as bitsandbytes.
constexpr float bnb4_nested_absmax(const float* nested_map, uint8_t code, float nested_absmax, float offset) {
  const float centred = nested_map[code] * nested_absmax;
  return centred + offset;
}

static_assert(swap_nibbles(0xF0) == 0x0F && swap_nibbles(0x2B) == 0xB2);
static_assert(bnb4_to_f32(0x0F, 1.0f, Codebook::kNf4) == 1.0f && bnb4_to_f32(0, 1.0f, Codebook::kNf4) == -1.0f,
              "the worked example");
static_assert(bnb4_to_f32(1, 3.0f, Codebook::kNf4) == -2.08857846f && bnb4_to_f32(7, 3.0f, Codebook::kNf4) == 0.0f);
static_assert(bnb4_to_f32(3, 24.0f, Codebook::kFp4) == 24.0f && bnb4_to_f32(13, 24.0f, Codebook::kFp4) == -12.0f &&
                  bnb4_to_f32(1, 24.0f, Codebook::kFp4) == 0.125f,
              "0011, 1101 and 0001");

// The nearest codes of x f32[count], finite, count % 64 == 0, under the largest magnitudes of its blocks: codes
// u8[count/2] in the order of memory, absmax f32[count/64]. A tie takes the lower code.
void quantize_bnb4(uint8_t* codes, float* absmax, const float* x, int64_t count, Codebook codebook);

}  // namespace qn
