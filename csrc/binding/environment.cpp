#include "binding/environment.h"

#include "core/cuda_device.h"

namespace qn {

namespace {

[[noreturn]] void refuse_device(const std::string& name) {
  if (name.rfind("cuda", 0) == 0) {
    require_cuda();
    fail(Code::kUnsupported, "device %s: the model does not run on CUDA yet in this version; use device 'cpu'",
         name.c_str());
  }
  fail(Code::kInvalidArgument, "Expected 'cpu' or 'cuda:N' for device but received '%s'", name.c_str());
}

}  // namespace

Environment::Environment(Napi::Env env) : env_(env), hub_(std::make_shared<JobHub>(env)) {
  // After the hub's ThreadSafeFunction, so that this hook runs before the function closes (hooks run last in, first
  // out).
  napi_add_env_cleanup_hook(env_, tear_down, this);
}

Environment::~Environment() {
  if (!torn_down_) {
    napi_remove_env_cleanup_hook(env_, tear_down, this);
    tear_down(this);
  }
}

void Environment::tear_down(void* self) {
  auto* environment = static_cast<Environment*>(self);
  environment->torn_down_ = true;
  environment->hub_->cancel_all();
  for (auto& [key, device] : environment->devices_) device->lane().stop();
  environment->hub_->close();
}

std::shared_ptr<Device> Environment::device(const std::string& name, int threads, const std::string& isa) {
  if (name != "cpu") refuse_device(name);
  const Isa level = isa.empty() ? detect_isa() : isa_from_name(isa.c_str());
  auto& device = devices_[{name, threads, level}];
  if (!device) device = std::make_shared<Device>(threads, level);
  return device;
}

}  // namespace qn
