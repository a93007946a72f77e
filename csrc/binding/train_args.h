// Arguments that several training classes read: token batches, labels, gradient forms.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "binding/values.h"
#include "train/gradient_store.h"
#include "train/tape.h"

namespace qn {

struct TokenBatch {
  std::vector<int32_t> ids, labels;  // [B, T]; labels may be empty
  std::vector<uint8_t> mask;         // [B, T] or empty
  std::vector<int32_t> starts;       // [B, T] or empty
  int64_t B = 1, T = 0;
  Recompute recompute = Recompute::kAll;
  bool shifted = false;

  TapeArgs tape_args() const {
    return {ids.data(), B, T, mask.empty() ? nullptr : mask.data(), starts.empty() ? nullptr : starts.data(),
            recompute};
  }
};

// { ids, labels?, mask?, starts?, batch, tokens, recompute?, shifted? }; the lengths are checked against batch ·
// tokens.
TokenBatch token_batch_of(const Napi::Object& args);

// { format, allowMany, seed }
GradientStore::Options gradient_options_of(const Napi::Object& options);

Recompute recompute_of(const std::string& name);
GradientFormat gradient_format_of(const std::string& name);

}  // namespace qn
