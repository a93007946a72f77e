#include "format/bnb4.h"

#include <algorithm>
#include <cmath>

namespace qn {

namespace {

uint32_t nearest_code(float x, const float* values) {
  uint32_t best = 0;
  for (uint32_t code = 1; code < 16; ++code) {
    if (std::abs(values[code] - x) < std::abs(values[best] - x)) best = code;
  }
  return best;
}

}  // namespace

void quantize_bnb4(uint8_t* codes, float* absmax, const float* x, int64_t count, Codebook codebook) {
  const float* values = bnb4_values(codebook);
  for (int64_t begin = 0; begin < count; begin += kBnb4BlockSize) {
    float largest = 0;
    for (int64_t i = begin; i < begin + kBnb4BlockSize; ++i) largest = std::max(largest, std::abs(x[i]));
    absmax[begin / kBnb4BlockSize] = largest;
    const auto code = [&](int64_t i) { return nearest_code(largest > 0 ? x[i] / largest : 0.0f, values); };
    for (int64_t i = begin; i < begin + kBnb4BlockSize; i += 2) {
      codes[i / 2] = static_cast<uint8_t>(code(i) | code(i + 1) << 4);
    }
  }
}

}  // namespace qn
