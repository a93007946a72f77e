#include "binding/job.h"

namespace qn {

JobHub::JobHub(Napi::Env env) : wake_(Wake::New(env, "qwen3-nvfp4", 0, 1, this)) { wake_.Unref(env); }

void JobHub::begin(Napi::Env env, const std::shared_ptr<CancelToken>& cancel) {
  if (running_.empty()) wake_.Ref(env);
  running_.insert(cancel);
}

void JobHub::end(Napi::Env env, const std::shared_ptr<CancelToken>& cancel) {
  running_.erase(running_.find(cancel));
  if (running_.empty()) wake_.Unref(env);
}

void JobHub::post(Message message) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    first = outbox_.empty();
    outbox_.push_back(std::move(message));
  }
  if (first) wake_.NonBlockingCall();
}

void JobHub::wake_up(Napi::Env env, Napi::Function, JobHub* hub, void*) {
  // Without an environment the function is being torn down and the hub may be gone.
  if (static_cast<napi_env>(env) != nullptr) hub->drain(env);
}

void JobHub::drain(Napi::Env env) {
  std::vector<Message> messages;
  {
    std::lock_guard lock(mutex_);
    messages.swap(outbox_);
  }
  std::optional<Napi::Error> thrown;
  for (Message& message : messages) {
    Napi::HandleScope scope(env);
    try {
      message(env);
    } catch (const Napi::Error& error) {
      if (!thrown) thrown = error;  // of a callback; the other promises must settle all the same
    }
  }
  if (thrown) throw *thrown;
}

void JobHub::cancel_all() {
  for (const auto& cancel : running_) cancel->cancel();
}

void JobHub::close() {
  std::vector<Message> dropped;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    dropped.swap(outbox_);
  }
  wake_.Release();
}

}  // namespace qn
