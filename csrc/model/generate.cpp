#include "model/generate.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "model/generation.h"

namespace qn {

namespace {

// Bounds the activation memory of a long prompt; also how often a cancel token is noticed between layers' weights.
constexpr int64_t kPrefillTokens = 512;

// The whole prompt or nothing: an error or a cancellation on the way takes back what was written.
ForwardOutput prefill(Model& model, KvCache& cache, const GenerateArgs& args, const Cpu& cpu) {
  const auto total = static_cast<int64_t>(args.prompt.size());
  const int64_t start = cache.seq_len();
  cache.reserve(total);
  ForwardOutput out;
  try {
    for (int64_t done = 0; done < total; done += kPrefillTokens) {
      ForwardArgs part;
      part.ids = args.prompt.data() + done;
      part.T = std::min(kPrefillTokens, total - done);
      const bool last = done + part.T == total && args.max_tokens > 0;
      part.logits = last ? LogitsWanted::kLast : LogitsWanted::kNone;
      out = forward_cached(model, cache, part, cpu);
    }
  } catch (...) {
    cache.truncate(start);
    throw;
  }
  return out;
}

FinishReason generate_tokens(Model& model, KvCache& cache, const GenerateArgs& args,
                             const std::function<bool(const Sampled&)>& on_token, const Cpu& cpu) {
  ForwardOutput out = prefill(model, cache, args, cpu);
  if (args.max_tokens <= 0) return FinishReason::kMaxTokens;
  Generation generation(args, on_token);
  const auto decode = model.device().cuda() ? decode_cuda : decode_cpu;
  return decode(model, cache, args, std::move(out.logits), generation, cpu);
}

}  // namespace

std::optional<FinishReason> Generation::take(const Sampled& token) {
  run_ = token.id == last_ ? run_ + 1 : 1;
  last_ = token.id;
  if (args_.max_repeats > 0 && run_ >= args_.max_repeats) {
    fail(Code::kDegenerateOutput, "token %d was produced %d times in a row", token.id, run_);
  }
  ++produced_;
  if (!on_token_(token)) return FinishReason::kCancelled;
  if (std::ranges::find(args_.stop_ids, token.id) != args_.stop_ids.end()) return FinishReason::kStopId;
  if (produced_ == args_.max_tokens) return FinishReason::kMaxTokens;
  return std::nullopt;
}

FinishReason decode_cpu(Model& model, KvCache& cache, const GenerateArgs& args, Buffer logits, Generation& generation,
                        const Cpu& cpu) {
  std::vector<int32_t> history = args.history;
  history.insert(history.end(), args.prompt.begin(), args.prompt.end());
  for (;;) {
    const Sampled token = sample_token(logits.as<float>(), model.config().V, history, cache.seq_len(), args.sampling);
    history.push_back(token.id);
    if (const auto reason = generation.take(token)) return *reason;
    if (cpu.cancel && cpu.cancel->cancelled()) return FinishReason::kCancelled;
    if (cache.seq_len() == cache.max_tokens()) return FinishReason::kCacheFull;
    ForwardArgs next;
    next.ids = &token.id;
    next.T = 1;
    logits = forward_cached(model, cache, next, cpu).logits;
  }
}

FinishReason generate(Model& model, KvCache& cache, const GenerateArgs& args,
                      const std::function<bool(const Sampled&)>& on_token, const Cpu& cpu) {
  if (args.prompt.empty()) fail(Code::kInvalidArgument, "Expected at least one id for prompt but received none");
  try {
    return generate_tokens(model, cache, args, on_token, cpu);
  } catch (const Error& error) {
    // A forward pass that saw the cancel token has not advanced the cache, so ending here leaves it consistent.
    if (error.code() == Code::kAborted) return FinishReason::kCancelled;
    throw;
  }
}

}  // namespace qn
