#include "binding/train_args.h"

namespace qn {

Recompute recompute_of(const std::string& name) {
  if (name == "all") return Recompute::kAll;
  if (name == "cheap") return Recompute::kCheap;
  if (name == "none") return Recompute::kNone;
  fail(Code::kInvalidArgument, "Expected 'all' | 'cheap' | 'none' for recompute but received '%s'", name.c_str());
}

GradientFormat gradient_format_of(const std::string& name) {
  if (name == "fp32") return GradientFormat::kFp32;
  if (name == "bf16") return GradientFormat::kBf16;
  if (name == "nvfp4") return GradientFormat::kNvfp4;
  fail(Code::kInvalidArgument, "Expected 'fp32' | 'bf16' | 'nvfp4' for gradients but received '%s'", name.c_str());
}

TokenBatch token_batch_of(const Napi::Object& args) {
  TokenBatch batch;
  batch.B = int_of(args.Get("batch"));
  batch.T = int_of(args.Get("tokens"));
  batch.ids = int32s_of(args.Get("ids"));
  batch.labels = int32s_of(args.Get("labels"));
  batch.mask = bytes_of(args.Get("mask"));
  batch.starts = int32s_of(args.Get("starts"));
  if (args.Has("recompute")) batch.recompute = recompute_of(string_of(args.Get("recompute")));
  if (args.Has("shifted")) batch.shifted = bool_of(args.Get("shifted"));
  const auto count = static_cast<size_t>(batch.B * batch.T);
  const auto fits = [&](const auto& values) { return values.empty() || values.size() == count; };
  if (batch.B < 1 || batch.T < 1 || batch.ids.size() != count || !fits(batch.labels) || !fits(batch.mask) ||
      !fits(batch.starts)) {
    fail(Code::kInvalidArgument, "ids, labels, mask and starts must each have batch x tokens elements");
  }
  return batch;
}

GradientStore::Options gradient_options_of(const Napi::Object& object) {
  GradientStore::Options options;
  options.format = gradient_format_of(string_of(object.Get("format")));
  options.allow_many = bool_of(object.Get("allowMany"));
  options.seed = seed_of(object.Get("seed"));
  return options;
}

}  // namespace qn
