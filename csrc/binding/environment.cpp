#include "binding/environment.h"

namespace qn {

namespace {

// N of 'cuda:N', or −1 for 'cpu'.
int cuda_index_of(const std::string& name) {
  if (name == "cpu") return -1;
  const std::string prefix = "cuda:";
  const bool digits = name.size() > prefix.size() && name.size() <= prefix.size() + 3 &&
                      name.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
  if (name.rfind(prefix, 0) == 0 && digits) return std::stoi(name.substr(prefix.size()));
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
  if (environment->observer_) environment->observer_->lane().stop();
  environment->hub_->close();
}

std::shared_ptr<Device> Environment::device(const std::string& name, int threads, const std::string& isa) {
  const int cuda_index = cuda_index_of(name);
  const Isa level = isa.empty() ? detect_isa() : isa_from_name(isa.c_str());
  auto& device = devices_[{name, threads, level}];
  if (!device) {
    device = cuda_index < 0 ? std::make_shared<Device>(threads, level)
                            : std::make_shared<Device>(threads, level, cuda_index);
  }
  return device;
}

const std::shared_ptr<Device>& Environment::observer() {
  if (!observer_) observer_ = std::make_shared<Device>(1, detect_isa());
  return observer_;
}

}  // namespace qn
