// The elementwise and row-wise ops. Arguments follow the C++ signatures: outputs first, then inputs, then sizes.
#include <string>

#include "binding/ops/ops.h"
#include "binding/ops/sample_args.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

float* floats(const Napi::Value& value) { return array_data<float>(value); }
bool truthy(const Napi::Value& value) { return value.ToBoolean().Value(); }

// (y, invRms | null, x, w, T, H, eps, options?)
void rms_norm(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    rms_norm_cpu(floats(info[0]), floats(info[1]), floats(info[2]), floats(info[3]), integer(info[4]), integer(info[5]),
                 number(info[6]), ops_cpu(info));
  });
}

// (dx, dw | null, dy, x, w, invRms, T, H, options?)
void rms_norm_backward(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    rms_norm_backward_cpu({.dx = floats(info[0]),
                           .dw = floats(info[1]),
                           .dy = floats(info[2]),
                           .x = floats(info[3]),
                           .w = floats(info[4]),
                           .inv_rms = floats(info[5]),
                           .T = integer(info[6]),
                           .H = integer(info[7])},
                          ops_cpu(info));
  });
}

// (cosines, sines, positions, T, D, base, options?)
void rope_table(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    rope_table_cpu(floats(info[0]), floats(info[1]), array_data<int32_t>(info[2]), integer(info[3]), integer(info[4]),
                   info[5].As<Napi::Number>().DoubleValue(), ops_cpu(info));
  });
}

// (x, cosines, sines, T, heads, D, inverse, options?)
void rope(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    rope_cpu(floats(info[0]), floats(info[1]), floats(info[2]), integer(info[3]), integer(info[4]), integer(info[5]),
             truthy(info[6]), ops_cpu(info));
  });
}

// (y, gate, up, count, options?)
void swiglu(const Napi::CallbackInfo& info) {
  guarded(info.Env(),
          [&] { swiglu_cpu(floats(info[0]), floats(info[1]), floats(info[2]), integer(info[3]), ops_cpu(info)); });
}

// (dgate, dup, dy, gate, up, count, options?)
void swiglu_backward(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    swiglu_backward_cpu(floats(info[0]), floats(info[1]), floats(info[2]), floats(info[3]), floats(info[4]),
                        integer(info[5]), ops_cpu(info));
  });
}

// (x, weight, ids, T, options?)
void embedding(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    embedding_cpu(floats(info[0]), weight_view(info[1]), array_data<int32_t>(info[2]), integer(info[3]), ops_cpu(info));
  });
}

// (dw, dx, ids, T, H, rowBegin, rowCount, options?)
void embedding_backward(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    embedding_backward_cpu(floats(info[0]), floats(info[1]), array_data<int32_t>(info[2]), integer(info[3]),
                           integer(info[4]), integer(info[5]), integer(info[6]), ops_cpu(info));
  });
}

// (max, sum, targetLogit, logits, labels, T, C, begin, options?)
void cross_entropy_accumulate(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    cross_entropy_accumulate_cpu({floats(info[0]), floats(info[1]), floats(info[2])}, floats(info[3]),
                                 array_data<int32_t>(info[4]), integer(info[5]), integer(info[6]), integer(info[7]),
                                 ops_cpu(info));
  });
}

// (lse, max, sum, T)
void cross_entropy_finish(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    cross_entropy_finish_cpu(floats(info[0]), {floats(info[1]), floats(info[2]), nullptr}, integer(info[3]));
  });
}

// (logits, lse, labels, weight, T, C, begin, options?)
void cross_entropy_gradient(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    cross_entropy_gradient_cpu(floats(info[0]), floats(info[1]), array_data<int32_t>(info[2]), floats(info[3]),
                               integer(info[4]), integer(info[5]), integer(info[6]), ops_cpu(info));
  });
}

// (logits, V, history | null, position, { temperature?, topK?, topP?, minP?, repetitionPenalty?, seed?, topLogprobs? })
//   -> { id, logprob, top: [{ id, logprob }] }
Napi::Value sample(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::vector<int32_t> history;
    if (const int32_t* ids = array_data<int32_t>(info[2]))
      history.assign(ids, ids + info[2].As<Napi::TypedArray>().ElementLength());
    const Sampled sampled = sample_token(floats(info[0]), integer(info[1]), history, integer(info[3]),
                                         sample_options(info[4].As<Napi::Object>()));
    Napi::Object result = token_object(info.Env(), sampled.id, sampled.logprob);
    Napi::Array top = Napi::Array::New(info.Env());
    for (const TokenLogprob& token : sampled.top)
      top.Set(top.Length(), token_object(info.Env(), token.id, token.logprob));
    result.Set("top", top);
    return result;
  });
}

}  // namespace

void register_small_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("rmsNorm", Napi::Function::New<rms_norm>(env, "rmsNorm"));
  ops.Set("rmsNormBackward", Napi::Function::New<rms_norm_backward>(env, "rmsNormBackward"));
  ops.Set("ropeTable", Napi::Function::New<rope_table>(env, "ropeTable"));
  ops.Set("rope", Napi::Function::New<rope>(env, "rope"));
  ops.Set("swiglu", Napi::Function::New<swiglu>(env, "swiglu"));
  ops.Set("swigluBackward", Napi::Function::New<swiglu_backward>(env, "swigluBackward"));
  ops.Set("embedding", Napi::Function::New<embedding>(env, "embedding"));
  ops.Set("embeddingBackward", Napi::Function::New<embedding_backward>(env, "embeddingBackward"));
  ops.Set("crossEntropyAccumulate", Napi::Function::New<cross_entropy_accumulate>(env, "crossEntropyAccumulate"));
  ops.Set("crossEntropyFinish", Napi::Function::New<cross_entropy_finish>(env, "crossEntropyFinish"));
  ops.Set("crossEntropyGradient", Napi::Function::New<cross_entropy_gradient>(env, "crossEntropyGradient"));
  ops.Set("sampleToken", Napi::Function::New<sample>(env, "sampleToken"));
}

}  // namespace qn
