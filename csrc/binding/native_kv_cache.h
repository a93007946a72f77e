// The KV cache of one conversation. One call at a time: a second one while the first runs is BUSY.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/model_state.h"
#include "binding/values.h"
#include "model/kv_cache.h"

namespace qn {

class NativeKvCache : public Napi::ObjectWrap<NativeKvCache> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e004};
  static constexpr const char* kName = "KvCache";
  static Napi::Function define(Napi::Env env);
  // (model, maxTokens, dtype)
  explicit NativeKvCache(const Napi::CallbackInfo& info);

  static Napi::Value wrap(Napi::Env env, std::shared_ptr<ModelState> model, std::shared_ptr<KvCache> cache);

  // JS thread. The cache for a job that will hold it, or Error(kBusy | kDisposed); `order` lets go when it settles.
  std::shared_ptr<KvCache> hold(JobOrder& order);
  const std::shared_ptr<ModelState>& model() const { return model_; }

 private:
  // What JavaScript reads at any time, and what says whether a job holds the cache. Outlives the wrapper in jobs.
  struct Status {
    bool busy = false;
    int64_t seq_len = 0;
  };

  Napi::Value JsSeqLen(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), double(status_->seq_len));
  }
  Napi::Value JsMaxTokens(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), double(max_tokens_)); }
  Napi::Value JsDtype(const Napi::CallbackInfo& info);
  Napi::Value JsBytes(const Napi::CallbackInfo& info);
  Napi::Value JsTruncate(const Napi::CallbackInfo& info);
  Napi::Value JsFork(const Napi::CallbackInfo& info);
  Napi::Value JsSave(const Napi::CallbackInfo& info);
  Napi::Value JsRestore(const Napi::CallbackInfo& info);
  Napi::Value JsDispose(const Napi::CallbackInfo& info);

  void adopt(std::shared_ptr<ModelState> model, std::shared_ptr<KvCache> cache);
  // A job that holds the cache: body(KvCache&, const Cpu&).
  template <typename Body>
  Napi::Value exclusive(const Napi::CallbackInfo& info, Body body);

  std::shared_ptr<ModelState> model_;
  std::shared_ptr<KvCache> cache_;  // null once disposed
  std::shared_ptr<Status> status_ = std::make_shared<Status>();
  int64_t max_tokens_ = 0;
  DType dtype_ = DType::kF32;
};

}  // namespace qn
