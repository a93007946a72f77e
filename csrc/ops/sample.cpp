#include "ops/sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <ranges>

#include "core/philox.h"
#include "core/status.h"
#include "ops/softmax_row.h"

namespace qn {

namespace {

// How many of the likeliest tokens top-p sorts first; eight times as many after each miss.
constexpr int64_t kFirstNucleus = 128;

float checked_max(const float* logits, int64_t V) {
  float max = -FLT_MAX;
  for (int64_t id = 0; id < V; ++id) {
    if (!std::isfinite(logits[id])) {
      fail(Code::kNonFiniteLogits, "the logit of token %lld is %f", (long long)id, static_cast<double>(logits[id]));
    }
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
    const float raw = logits[id];
    out[static_cast<size_t>(id)] = std::clamp(raw > 0 ? raw / penalty : raw * penalty, -FLT_MAX, FLT_MAX);
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

// Probabilities up to a common factor: the likeliest token weighs 1.
class Weights {
 public:
  Weights(const float* logits, float max, float temperature)
      : logits_(logits), max_(max), temperature_(static_cast<double>(temperature)) {}
  double operator[](int32_t id) const { return std::exp((static_cast<double>(logits_[id]) - max_) / temperature_); }

 private:
  const float* logits_;
  double max_, temperature_;
};

// Cuts `ranked`, likeliest first, behind the token at which the running sum reaches `wanted`; false if it never does.
bool cut_nucleus(std::vector<int32_t>& ranked, const Weights& weights, double wanted) {
  double sum = 0;
  for (size_t i = 0; i < ranked.size(); ++i) {
    sum += weights[ranked[i]];
    if (sum < wanted) continue;
    ranked.resize(i + 1);
    return true;
  }
  return false;
}

// top-k, then top-p of what is left, without ever sorting the whole vocabulary unless the distribution is that flat.
std::vector<int32_t> likeliest(const std::vector<float>& logits, const Weights& weights, const SampleOptions& options) {
  const auto V = static_cast<int64_t>(logits.size());
  const int64_t limit = options.top_k > 0 ? std::min<int64_t>(options.top_k, V) : V;
  if (options.top_p >= 1) {
    if (limit < V) return largest(logits.data(), V, limit);
    const auto all = std::views::iota(int32_t{0}, static_cast<int32_t>(V));
    return {all.begin(), all.end()};
  }
  std::vector<int32_t> ranked = limit < V ? largest(logits.data(), V, limit) : std::vector<int32_t>{};
  double total = 0;
  if (limit < V) {
    for (const int32_t id : ranked) total += weights[id];
    cut_nucleus(ranked, weights, options.top_p * total);
    return ranked;
  }
  for (int32_t id = 0; id < V; ++id) total += weights[id];
  for (int64_t count = kFirstNucleus;; count *= 8) {
    ranked = largest(logits.data(), V, count);
    if (cut_nucleus(ranked, weights, options.top_p * total) || count >= V) return ranked;
  }
}

// In (0, 1) on 52 bits: with 24 the tail of a vocabulary of 151,936 could never be drawn in its true proportion.
double draw(uint64_t seed, int64_t position) {
  const PhiloxWords words = random_words(seed, position, 0, 0, RandomStream::kSample);
  const uint64_t bits = (static_cast<uint64_t>(words.w[0]) << 20) | (words.w[1] >> 12);
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

int32_t choose(const std::vector<float>& logits, int64_t position, const SampleOptions& options) {
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options.temperature == 0) return best;
  const Weights weights(logits.data(), logits[static_cast<size_t>(best)], options.temperature);
  std::vector<int32_t> kept = likeliest(logits, weights, options);
  if (options.min_p > 0) std::erase_if(kept, [&](int32_t id) { return weights[id] < options.min_p; });
  // In the order of ids, so that a filter that removes nothing changes no draw.
  std::ranges::sort(kept);
  double total = 0;
  for (const int32_t id : kept) total += weights[id];
  double rest = draw(options.seed, position) * total;
  for (const int32_t id : kept) {
    rest -= weights[id];
    if (rest < 0) return id;
  }
  return best;  // rounding left a remainder
}

}  // namespace

Sampled sample_token(const float* logits, int64_t V, const std::vector<int32_t>& history, int64_t position,
                     const SampleOptions& options) {
  const float max = checked_max(logits, V);
  const double lse = max + std::log(softmax_row(detect_isa()).exp_sum(logits, V, max));
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[id] - lse); };

  Sampled sampled;
  sampled.id = choose(penalised(logits, V, history, options.repetition_penalty), position, options);
  sampled.logprob = logprob(sampled.id);
  if (options.top_logprobs > 0) {
    for (const int32_t id : largest(logits, V, options.top_logprobs)) sampled.top.push_back({id, logprob(id)});
  }
  return sampled;
}

}  // namespace qn
