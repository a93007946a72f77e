#include "ops/sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <iterator>
#include <ranges>

#include "core/status.h"
#include "ops/sample_math.h"
#include "ops/softmax_row.h"

namespace qn {

namespace {

// The nucleus of most distributions is smaller than this: top-p looks there before it starts halving.
constexpr int64_t kFirstNucleus = 128;

float checked_max(const float* logits, int64_t V) {
  float max = -FLT_MAX;
  for (int64_t id = 0; id < V; ++id) {
    if (!std::isfinite(logits[id])) fail_non_finite_logit(static_cast<int32_t>(id), logits[id]);
    max = std::max(max, logits[id]);
  }
  return max;
}

// Reads the raw logit every time, so an id that occurs twice is penalised once.
std::vector<float> penalised(const float* logits, int64_t V, const std::vector<int32_t>& history, float penalty) {
  std::vector<float> out(logits, logits + V);
  if (penalty == 1) return out;
  for (const int32_t id : history) {
    if (id < 0 || id >= V) {
      fail(Code::kInvalidArgument, "Expected ids in [0, %lld) for history but received %d", (long long)V, id);
    }
    out[static_cast<size_t>(id)] = penalised_logit(logits[id], penalty);
  }
  return out;
}

// The ids of the `count` largest values, largest first, ties to the lower id: one pass with a heap of that size.
std::vector<int32_t> largest(const float* values, int64_t V, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(std::min(count, V)));
  const auto all = std::views::iota(int32_t{0}, static_cast<int32_t>(V));
  std::partial_sort_copy(all.begin(), all.end(), ids.begin(), ids.end(), [values](int32_t a, int32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  });
  return ids;
}

// A token that may be drawn.
struct Candidate {
  uint64_t weight;  // sample_math.h
  float logit;
  int32_t id;
};

// By the logit: weights of neighbouring logits may be equal.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

uint64_t total_weight(auto begin, auto end) {
  uint64_t sum = 0;
  for (; begin != end; ++begin) sum += begin->weight;
  return sum;
}

// What top-k leaves, in the order of ids.
std::vector<Candidate> candidates(const std::vector<float>& logits, float max, const SampleOptions& options) {
  const auto V = static_cast<int64_t>(logits.size());
  const float inverse = inverse_of(options.temperature);
  std::vector<Candidate> out;
  const auto add = [&](int32_t id) {
    const float logit = logits[static_cast<size_t>(id)];
    out.push_back({sample_weight(logit, max, inverse), logit, id});
  };
  if (options.top_k > 0 && options.top_k < V) {
    std::vector<int32_t> ids = largest(logits.data(), V, options.top_k);
    std::ranges::sort(ids);
    for (const int32_t id : ids) add(id);
  } else {
    out.reserve(static_cast<size_t>(V));
    for (int32_t id = 0; id < V; ++id) add(id);
  }
  return out;
}

// The token at which the running sum, likeliest first, reaches top_p of the total. Halves the range that holds it
// instead of sorting a vocabulary of which nearly everything would be dropped.
Candidate crossing_token(const std::vector<Candidate>& all, float top_p) {
  const uint64_t total = total_weight(all.begin(), all.end());
  uint64_t missing = nucleus_weight(fraction_of(top_p), total);
  // Tokens lighter than `light` together weigh no more than what top-p leaves over, so the crossing one is at or before
  // the last that is not. Half of it, because weights follow logits only up to their rounding.
  const uint64_t light = (total - missing) / all.size();
  std::vector<Candidate> tokens;
  std::ranges::copy_if(all, std::back_inserter(tokens),
                       [&](const Candidate& token) { return token.weight >= light / 2; });
  auto low = tokens.begin(), high = tokens.end();
  int64_t step = kFirstNucleus;
  while (high - low > 1) {
    const auto middle = low + std::min<int64_t>(step, (high - low) / 2);
    std::nth_element(low, middle, high, likelier);
    const uint64_t sum = total_weight(low, middle);
    if (sum >= missing) {
      high = middle;
    } else {
      missing -= sum;
      low = middle;
    }
    step = high - low;
  }
  return *low;
}

int32_t choose(const std::vector<float>& logits, int64_t position, const SampleOptions& options) {
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options.temperature == 0) return best;
  std::vector<Candidate> kept = candidates(logits, logits[static_cast<size_t>(best)], options);
  if (options.top_p < 1) {
    const Candidate last = crossing_token(kept, options.top_p);
    std::erase_if(kept, [&](const Candidate& token) { return likelier(last, token); });
  }
  std::erase_if(kept, [least = least_weight(options.min_p)](const Candidate& token) { return token.weight < least; });
  // Still in the order of ids, so that a filter that removes nothing changes no draw.
  uint64_t rest = multiply_high(draw_bits(options.seed, position), total_weight(kept.begin(), kept.end()));
  auto token = kept.begin();
  for (; rest >= token->weight; ++token) rest -= token->weight;
  return token->id;
}

}  // namespace

void fail_non_finite_logit(int32_t id, float value) {
  fail(Code::kNonFiniteLogits, "the logit of token %d is %f", id, static_cast<double>(value));
}

Sampled sample_token(const float* logits, int64_t V, const std::vector<int32_t>& history, int64_t position,
                     const SampleOptions& options) {
  const float max = checked_max(logits, V);
  // Not logit − (max + log_sum): beside a large maximum the sum would round away.
  const double log_sum = std::log(softmax_row(detect_isa()).exp_sum(logits, V, max));
  const auto logprob = [&](int32_t id) {
    return static_cast<float>((static_cast<double>(logits[id]) - static_cast<double>(max)) - log_sum);
  };

  Sampled sampled;
  sampled.id = choose(penalised(logits, V, history, options.repetition_penalty), position, options);
  sampled.logprob = logprob(sampled.id);
  if (options.top_logprobs > 0) {
    for (const int32_t id : largest(logits, V, options.top_logprobs)) sampled.top.push_back({id, logprob(id)});
  }
  return sampled;
}

}  // namespace qn
