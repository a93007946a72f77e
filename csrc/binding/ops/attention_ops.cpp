#include <cstring>
#include <vector>

#include "binding/ops/attention_dims.h"
#include "ops/attention_task.h"

namespace qn {

namespace {

// attention(y, lse, q, k, v, mask, { B, T, Q, KV, D, starts? }, options)
Napi::Value js_attention(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    AttentionForward args = {};
    args.y = array_data<float>(info[0]);
    args.lse = array_data<float>(info[1]);
    args.q = array_data<float>(info[2]);
    args.k = array_data<float>(info[3]);
    args.v = array_data<float>(info[4]);
    args.mask = array_data<uint8_t>(info[5]);
    args.starts = attention_starts(info[6]);
    args.shape = attention_shape(info[6]);
    attention_cpu(args, ops_cpu(info));
    return info.Env().Undefined();
  });
}

// attentionBackward(dq, dk, dv, dy, y, lse, q, k, v, mask, { B, T, Q, KV, D, starts? }, options)
Napi::Value js_attention_backward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    AttentionBackward args = {};
    args.dq = array_data<float>(info[0]);
    args.dk = array_data<float>(info[1]);
    args.dv = array_data<float>(info[2]);
    args.dy = array_data<float>(info[3]);
    args.y = array_data<float>(info[4]);
    args.lse = array_data<float>(info[5]);
    args.q = array_data<float>(info[6]);
    args.k = array_data<float>(info[7]);
    args.v = array_data<float>(info[8]);
    args.mask = array_data<uint8_t>(info[9]);
    args.starts = attention_starts(info[10]);
    args.shape = attention_shape(info[10]);
    attention_backward_cpu(args, ops_cpu(info));
    return info.Env().Undefined();
  });
}

DType cache_dtype(const Napi::Value& value) {
  const std::string name = value.As<Napi::String>().Utf8Value();
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  fail(Code::kInvalidArgument, "Expected f32, f16 or bf16 for dtype but received %s", name.c_str());
}

std::vector<const void*> page_pointers(const Napi::Value& value) {
  const auto arrays = value.As<Napi::Array>();
  std::vector<const void*> pages;
  for (uint32_t i = 0; i < arrays.Length(); ++i) {
    const auto page = arrays.Get(i).As<Napi::TypedArray>();
    pages.push_back(static_cast<const char*>(page.ArrayBuffer().Data()) + page.ByteOffset());
  }
  return pages;
}

// attentionCached(y, q, kPages, vPages, { dtype, pageTokens, offset, T, Q, KV, D }, options)
Napi::Value js_attention_cached(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto k_pages = page_pointers(info[2]), v_pages = page_pointers(info[3]);
    const auto dims = info[4].As<Napi::Object>();
    const AttentionShape shape = attention_shape(dims);
    AttentionCached args = {};
    args.y = array_data<float>(info[0]);
    args.q = array_data<float>(info[1]);
    args.k_pages = k_pages.data();
    args.v_pages = v_pages.data();
    args.dtype = cache_dtype(dims.Get("dtype"));
    args.page_tokens = integer(dims.Get("pageTokens"));
    args.T = shape.T;
    args.offset = integer(dims.Get("offset"));
    args.Q = shape.Q;
    args.KV = shape.KV;
    args.D = shape.D;
    attention_cached_cpu(args, ops_cpu(info));
    return info.Env().Undefined();
  });
}

// attentionExp(y, x, options): the exponential inside the kernels; lengths are multiples of 16.
Napi::Value js_attention_exp(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto count = static_cast<int64_t>(info[0].As<Napi::TypedArray>().ElementLength());
    attention_kernels(ops_cpu(info).isa).exp(array_data<float>(info[0]), array_data<float>(info[1]), count);
    return info.Env().Undefined();
  });
}

}  // namespace

void register_attention_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attention", Napi::Function::New(env, js_attention));
  ops.Set("attentionBackward", Napi::Function::New(env, js_attention_backward));
  ops.Set("attentionCached", Napi::Function::New(env, js_attention_cached));
  ops.Set("attentionExp", Napi::Function::New(env, js_attention_exp));
}

}  // namespace qn
