// The arguments and results of the sampling ops, the CPU's and CUDA's.
#pragma once

#include "binding/ops/ops.h"
#include "ops/sample.h"

namespace qn {

// { temperature?, topK?, topP?, minP?, repetitionPenalty?, seed?, topLogprobs? }
inline SampleOptions sample_options(const Napi::Object& object) {
  const auto value = [&](const char* key, double missing) {
    const Napi::Value given = object.Get(key);
    return given.IsNumber() ? given.As<Napi::Number>().DoubleValue() : missing;
  };
  SampleOptions options;
  options.temperature = static_cast<float>(value("temperature", 0));
  options.top_k = static_cast<int32_t>(value("topK", 0));
  options.top_p = static_cast<float>(value("topP", 1));
  options.min_p = static_cast<float>(value("minP", 0));
  options.repetition_penalty = static_cast<float>(value("repetitionPenalty", 1));
  options.seed = static_cast<uint64_t>(value("seed", 0));
  options.top_logprobs = static_cast<int32_t>(value("topLogprobs", 0));
  return options;
}

inline Napi::Object token_object(Napi::Env env, int32_t id, float logprob) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("id", id);
  object.Set("logprob", logprob);
  return object;
}

}  // namespace qn
