// The values of bitsandbytes' codebooks where kernels can look them up. For .cu files alone.
#pragma once

#include "format/bnb4.h"

namespace qn {

// By codebook, then code. Lanes that ask for different codes take turns: kernels that look up much copy it first.
static __constant__ float kBnb4Values[2][16] = {
#define QN_SIXTEEN(v) \
  { v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15] }
    QN_SIXTEEN(kNf4Values), QN_SIXTEEN(kFp4Values)
#undef QN_SIXTEEN
};

__device__ inline float bnb4_value(Codebook codebook, uint32_t code) {
  return kBnb4Values[static_cast<int>(codebook)][code];
}

}  // namespace qn
