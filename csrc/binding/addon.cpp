// The addon's exports. types/native.ts is this list in TypeScript.
#include <napi.h>

#include "binding/ops/ops.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  Napi::Object ops = Napi::Object::New(env);
  qn::register_linear_ops(env, ops);
  qn::register_small_ops(env, ops);
  qn::register_attention_ops(env, ops);
  qn::register_nvfp4_ops(env, ops);
  qn::register_adamw_ops(env, ops);
  exports.Set("ops", ops);
  return exports;
}

}  // namespace

NODE_API_MODULE(qwen3_nvfp4, init)
