// What the products of forward passes multiply.
#pragma once

#include <cstdint>

namespace qn {

class Model;

enum class Compute : uint8_t {
  kW4A16,  // weights with activations as they are (ops/linear.h)
  kW4A4,   // NVFP4 weights with activations rounded to NVFP4 (ops/linear_w4a4.h), for more than kGemvTokens tokens
};

// Error(kUnsupported) unless the device of the model and the shapes of its weights can do what it computes with.
void require_compute(Model& model);

}  // namespace qn
