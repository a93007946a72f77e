// What the addon keeps per JavaScript environment (the main thread, a worker). No process-wide state.
#pragma once

#include <napi.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "binding/job.h"
#include "core/device.h"

namespace qn {

class Environment {
 public:
  explicit Environment(Napi::Env env);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  // The device for these arguments, made at first use and kept until the environment ends: a lane must not be destroyed
  // by one of its own jobs.
  std::shared_ptr<Device> device(const std::string& name, int threads, const std::string& isa);
  // A CPU device of one thread for questions that must not wait behind what the others compute.
  const std::shared_ptr<Device>& observer();
  const std::shared_ptr<JobHub>& hub() const { return hub_; }
  JobOrder order(const std::shared_ptr<Device>& device, std::shared_ptr<CancelToken> cancel = nullptr) const {
    return {hub_, device, std::move(cancel), {}, false, false};
  }
  // For a job that only frees what it holds: something small, whose memory the device's next job may want, or with
  // `trims` something large.
  JobOrder disposal(const std::shared_ptr<Device>& device, bool trims = false) const {
    return {hub_, device, nullptr, {}, true, trims};
  }

  // Constructors of the classes whose objects the addon itself makes.
  Napi::FunctionReference tensor_class, tape_class, kv_cache_class, linear_ste_class;

 private:
  static void tear_down(void* self);

  napi_env env_;
  std::shared_ptr<JobHub> hub_;
  std::map<std::tuple<std::string, int, Isa>, std::shared_ptr<Device>> devices_;
  std::shared_ptr<Device> observer_;
  bool torn_down_ = false;
};

}  // namespace qn
