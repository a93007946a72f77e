#include "model/generate.h"

#include <algorithm>

#include "core/status.h"

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

class RepeatGuard {
 public:
  explicit RepeatGuard(int32_t limit) : limit_(limit) {}
  void see(int32_t id) {
    run_ = id == last_ ? run_ + 1 : 1;
    last_ = id;
    if (limit_ > 0 && run_ >= limit_) {
      fail(Code::kDegenerateOutput, "token %d was produced %d times in a row", id, run_);
    }
  }

 private:
  int32_t limit_, last_ = -1, run_ = 0;
};

FinishReason decode(Model& model, KvCache& cache, const GenerateArgs& args,
                    const std::function<bool(const Sampled&)>& on_token, const Cpu& cpu) {
  std::vector<int32_t> history = args.history;
  history.insert(history.end(), args.prompt.begin(), args.prompt.end());
  RepeatGuard guard(args.max_repeats);
  ForwardOutput out = prefill(model, cache, args, cpu);
  for (int64_t produced = 0; produced < args.max_tokens;) {
    const Sampled token =
        sample_token(out.logits.as<float>(), model.config().V, history, cache.seq_len(), args.sampling);
    guard.see(token.id);
    history.push_back(token.id);
    ++produced;
    if (!on_token(token)) return FinishReason::kCancelled;
    if (std::ranges::find(args.stop_ids, token.id) != args.stop_ids.end()) return FinishReason::kStopId;
    if (produced == args.max_tokens) break;
    if (cpu.cancel && cpu.cancel->cancelled()) return FinishReason::kCancelled;
    if (cache.seq_len() == cache.max_tokens()) return FinishReason::kCacheFull;
    ForwardArgs next;
    next.ids = &token.id;
    next.T = 1;
    out = forward_cached(model, cache, next, cpu);
  }
  return FinishReason::kMaxTokens;
}

}  // namespace

FinishReason generate(Model& model, KvCache& cache, const GenerateArgs& args,
                      const std::function<bool(const Sampled&)>& on_token, const Cpu& cpu) {
  if (args.prompt.empty()) fail(Code::kInvalidArgument, "Expected at least one id for prompt but received none");
  try {
    return decode(model, cache, args, on_token, cpu);
  } catch (const Error& error) {
    // A forward pass that saw the cancel token has not advanced the cache, so ending here leaves it consistent.
    if (error.code() == Code::kAborted) return FinishReason::kCancelled;
    throw;
  }
}

}  // namespace qn
