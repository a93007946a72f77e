// Promise jobs: JavaScript arguments are copied into a closure on the JS thread, the closure runs on the device's lane
// and touches no JavaScript, and one promise settles back on the JS thread.
//
// All traffic to the JS thread goes through one ThreadSafeFunction per environment. It keeps the process alive while
// jobs are pending and not a moment longer. When the environment is torn down (exit, worker.terminate()), every job's
// cancel token is set, the lanes are joined, and what they still had to say is dropped.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "binding/errors.h"
#include "core/device.h"

namespace qn {

class JobHub {
 public:
  using Message = std::function<void(Napi::Env)>;

  explicit JobHub(Napi::Env env);

  // JS thread: counts a job in and out. The token is set when the environment ends.
  void begin(Napi::Env env, const std::shared_ptr<CancelToken>& cancel);
  void end(Napi::Env env, const std::shared_ptr<CancelToken>& cancel);

  // Any thread: `message` runs on the JS thread, after those posted before it. One wake serves all that wait.
  void post(Message message);

  // JS thread, at teardown: cancel_all(), then join the lanes, then close().
  void cancel_all();
  void close();

 private:
  static void wake_up(Napi::Env env, Napi::Function, JobHub* hub, void*);
  using Wake = Napi::TypedThreadSafeFunction<JobHub, void, &JobHub::wake_up>;
  void drain(Napi::Env env);

  Wake wake_;
  std::mutex mutex_;
  std::vector<Message> outbox_;
  bool closed_ = false;
  std::unordered_multiset<std::shared_ptr<CancelToken>> running_;  // one entry a job
};

// For jobs without a result.
struct Nothing {};
inline Napi::Value to_undefined(Napi::Env env, Nothing&) { return env.Undefined(); }

struct JobOrder {
  std::shared_ptr<JobHub> hub;
  std::shared_ptr<Device> device;
  std::shared_ptr<CancelToken> cancel;   // may be null
  std::function<void(bool ok)> settled;  // on the JS thread, just before the promise settles; may be empty
  bool only_frees = false;               // see Device::begin_job()
  bool trims = false;                    // gives what was freed back to the GPU before the promise settles
};

// work(const Cpu&) -> Result runs on the lane and is destroyed there; convert(env, Result&) -> Napi::Value runs and is
// destroyed on the JS thread, so it alone may own JavaScript references.
template <typename Work, typename Convert>
Napi::Value run_job(Napi::Env env, JobOrder order, Work work, Convert convert) {
  using Result = std::invoke_result_t<Work&, const Cpu&>;
  struct State {
    State(Napi::Env env, JobOrder order, Work work, Convert convert)
        : order(std::move(order)),
          deferred(Napi::Promise::Deferred::New(env)),
          work(std::move(work)),
          convert(std::move(convert)) {}

    void run() {
      try {
        order.device->begin_job(order.only_frees);
        result.emplace((*work)(order.device->cpu(order.cancel.get())));
        order.device->end_job();
      } catch (const Error& error) {
        failure.emplace(error);
      } catch (const std::bad_alloc&) {
        failure.emplace(Code::kOutOfMemory, "out of memory");
      } catch (const std::exception& error) {
        failure.emplace(Code::kInternal, error.what());
      }
      work.reset();  // what it held is freed on the lane, before the promise settles
      if (order.trims) trim();
    }

    void trim() {
      try {
        order.device->trim();
      } catch (const Error& error) {
        if (!failure) failure.emplace(error);
      }
    }

    void settle(Napi::Env env) {
      order.hub->end(env, order.cancel);
      if (order.settled) order.settled(!failure);
      if (failure) {
        deferred.Reject(to_js_error(env, *failure).Value());
        return;
      }
      try {
        deferred.Resolve(convert(env, *result));
      } catch (const Napi::Error& error) {
        deferred.Reject(error.Value());
      } catch (const std::exception& error) {
        deferred.Reject(to_js_error(env, code_name(Code::kInternal), error.what()).Value());
      }
    }

    JobOrder order;
    Napi::Promise::Deferred deferred;
    std::optional<Work> work;
    Convert convert;
    std::optional<Result> result;
    std::optional<Error> failure;
  };

  if (!order.cancel) order.cancel = std::make_shared<CancelToken>();
  auto state = std::make_shared<State>(env, std::move(order), std::move(work), std::move(convert));
  const Napi::Value promise = state->deferred.Promise();
  Lane& lane = state->order.device->lane();
  state->order.hub->begin(env, state->order.cancel);
  lane.submit([state = std::move(state)]() mutable {
    // Moved along, never copied: the last owner must be the JS thread, where the JavaScript references may die.
    std::shared_ptr<State> own = std::move(state);
    own->run();
    const std::shared_ptr<JobHub> hub = own->order.hub;
    hub->post([own = std::move(own)](Napi::Env env) { own->settle(env); });
  });
  return promise;
}

}  // namespace qn
