#include "binding/native_kv_cache.h"

#include "binding/native_model.h"

namespace qn {

namespace {

DType cache_dtype_of(const std::string& name) {
  switch (storage_of(name)) {
    case Storage::kF32:
      return DType::kF32;
    case Storage::kF16:
      return DType::kF16;
    case Storage::kBF16:
      return DType::kBF16;
    default:
      fail(Code::kInvalidArgument, "Expected 'fp32' | 'fp16' | 'bf16' for dtype but received '%s'", name.c_str());
  }
}

}  // namespace

Napi::Function NativeKvCache::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&NativeKvCache::JsSeqLen>("seqLen"), InstanceAccessor<&NativeKvCache::JsMaxTokens>("maxTokens"),
       InstanceAccessor<&NativeKvCache::JsDtype>("dtype"), InstanceMethod<&NativeKvCache::JsBytes>("bytes"),
       InstanceMethod<&NativeKvCache::JsTruncate>("truncate"), InstanceMethod<&NativeKvCache::JsFork>("fork"),
       InstanceMethod<&NativeKvCache::JsSave>("save"), InstanceMethod<&NativeKvCache::JsRestore>("restore"),
       InstanceMethod<&NativeKvCache::JsDispose>("dispose")});
}

NativeKvCache::NativeKvCache(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
  if (info.Length() == 0) return;  // wrap() fills it
  guarded(info.Env(), [&] {
    auto model = unwrap<NativeModel>(info[0]).alive();
    auto cache = std::make_shared<KvCache>(model->device(), model->model.config(), int_of(info[1]),
                                           cache_dtype_of(string_of(info[2])));
    adopt(std::move(model), std::move(cache));
  });
}

Napi::Value NativeKvCache::wrap(Napi::Env env, std::shared_ptr<ModelState> model, std::shared_ptr<KvCache> cache) {
  const Napi::Object object = Environment::of(env).kv_cache_class.New({});
  Unwrap(object)->adopt(std::move(model), std::move(cache));
  return object;
}

void NativeKvCache::adopt(std::shared_ptr<ModelState> model, std::shared_ptr<KvCache> cache) {
  model_ = std::move(model);
  cache_ = std::move(cache);
  max_tokens_ = cache_->max_tokens();
  dtype_ = cache_->dtype();
  status_->seq_len = cache_->seq_len();
}

std::shared_ptr<KvCache> NativeKvCache::hold(JobOrder& order) {
  if (!cache_) fail(Code::kDisposed, "the key/value cache was disposed");
  model_->require_alive("the key/value cache");
  if (status_->busy) {
    fail(Code::kBusy, "the key/value cache is in use by another call; await it first, or fork() the cache");
  }
  status_->busy = true;
  order.settled = [status = status_, held = std::weak_ptr<KvCache>(cache_)](bool) {
    status->busy = false;
    if (const auto cache = held.lock()) status->seq_len = cache->seq_len();
  };
  return cache_;
}

template <typename Body>
Napi::Value NativeKvCache::exclusive(const Napi::CallbackInfo& info, Body body) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!cache_) fail(Code::kDisposed, "the key/value cache was disposed");
    JobOrder order = Environment::of(env).order(model_->device());
    auto cache = hold(order);
    return run_job(
        env, std::move(order),
        [cache = std::move(cache), model = model_, body = std::move(body)](const Cpu& cpu) {
          body(*cache, cpu);
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeKvCache::JsDtype(const Napi::CallbackInfo& info) {
  const Storage storage = dtype_ == DType::kF32   ? Storage::kF32
                          : dtype_ == DType::kF16 ? Storage::kF16
                                                  : Storage::kBF16;
  return Napi::String::New(info.Env(), storage_name(storage));
}

Napi::Value NativeKvCache::JsBytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!cache_) fail(Code::kDisposed, "the key/value cache was disposed");
    return run_job(
        env, Environment::of(env).order(model_->device()), [cache = cache_](const Cpu&) { return cache->bytes(); },
        [](Napi::Env env, int64_t& bytes) -> Napi::Value { return Napi::Number::New(env, double(bytes)); });
  });
}

Napi::Value NativeKvCache::JsTruncate(const Napi::CallbackInfo& info) {
  return exclusive(info, [tokens = int_of(info[0])](KvCache& cache, const Cpu&) { cache.truncate(tokens); });
}

Napi::Value NativeKvCache::JsFork(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!cache_) fail(Code::kDisposed, "the key/value cache was disposed");
    JobOrder order = Environment::of(env).order(model_->device());
    auto cache = hold(order);
    return run_job(
        env, std::move(order), [cache = std::move(cache)](const Cpu&) { return cache->fork(); },
        [model = model_](Napi::Env env, std::shared_ptr<KvCache>& fork) { return wrap(env, model, std::move(fork)); });
  });
}

Napi::Value NativeKvCache::JsSave(const Napi::CallbackInfo& info) {
  return exclusive(info, [path = string_of(info[0])](KvCache& cache, const Cpu& cpu) { cache.save(path, cpu); });
}

Napi::Value NativeKvCache::JsRestore(const Napi::CallbackInfo& info) {
  return exclusive(info, [path = string_of(info[0])](KvCache& cache, const Cpu& cpu) { cache.restore(path, cpu); });
}

Napi::Value NativeKvCache::JsDispose(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!model_) fail(Code::kInternal, "a cache without a model");
    status_->seq_len = 0;
    // The last reference goes on the lane, behind every job that uses the cache.
    return run_job(
        env, Environment::of(env).disposal(model_->device(), true),
        [cache = std::move(cache_)](const Cpu&) { return Nothing{}; }, to_undefined);
  });
}

}  // namespace qn
