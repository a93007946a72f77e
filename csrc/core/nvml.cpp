#include "core/nvml.h"

#include <dlfcn.h>

#include <cstdlib>

#include "core/status.h"

namespace qn {

namespace {

// The part of nvml.h that is used here; its layouts are fixed by the suffixes of the functions.
using Handle = void*;
constexpr int kSuccess = 0;
constexpr int kInsufficientSize = 7;
constexpr unsigned long long kNotAvailable = ~0ULL;

struct MemoryInfo {
  unsigned long long total, free, used;
};

struct ProcessInfo {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};

struct Api {
  int (*Init)();
  const char* (*ErrorString)(int status);
  int (*HandleByPciBusId)(const char* id, Handle* device);
  int (*MigMode)(Handle device, unsigned int* current, unsigned int* pending);
  int (*MemoryInfo)(Handle device, qn::MemoryInfo* memory);
  int (*ComputeProcesses)(Handle device, unsigned int* count, ProcessInfo* infos);
};

template <typename Function>
void bind(Function& function, void* library, const std::string& path, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) fail(Code::kUnsupported, "%s has no %s; update the NVIDIA driver", path.c_str(), name);
}

Api load() {
  const char* chosen = std::getenv("QN_NVML");
  const std::string path = chosen && *chosen ? chosen : "libnvidia-ml.so.1";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(Code::kUnsupported, "NVML cannot be opened: %s", dlerror());
  Api api{};
  bind(api.Init, library, path, "nvmlInit_v2");
  bind(api.ErrorString, library, path, "nvmlErrorString");
  bind(api.HandleByPciBusId, library, path, "nvmlDeviceGetHandleByPciBusId_v2");
  bind(api.MigMode, library, path, "nvmlDeviceGetMigMode");
  bind(api.MemoryInfo, library, path, "nvmlDeviceGetMemoryInfo");
  bind(api.ComputeProcesses, library, path, "nvmlDeviceGetComputeRunningProcesses_v3");
  if (const int status = api.Init(); status != kSuccess) {
    fail(Code::kUnsupported, "NVML cannot be used: %s", api.ErrorString(status));
  }
  return api;
}

const Api& api() {
  static const Api loaded = load();  // a throw leaves it unmade
  return loaded;
}

std::string failed(const char* call, int status) { return std::string(call) + ": " + api().ErrorString(status); }

void add(std::string& reason, const std::string& more) { reason += (reason.empty() ? "" : "; ") + more; }

void read_processes(Handle device, NvmlReading& reading) {
  std::vector<ProcessInfo> infos(64);
  int status;
  unsigned int count;
  do {
    count = static_cast<unsigned int>(infos.size());
    status = api().ComputeProcesses(device, &count, infos.data());
    if (status == kInsufficientSize) infos.resize(infos.size() * 2);
  } while (status == kInsufficientSize);
  if (status != kSuccess) return add(reading.reason, failed("nvmlDeviceGetComputeRunningProcesses", status));
  std::vector<GpuProcess> processes;
  for (unsigned int i = 0; i < count; ++i) {
    if (infos[i].used == kNotAvailable) return add(reading.reason, "the driver does not say the bytes of a process");
    processes.push_back({infos[i].pid, static_cast<int64_t>(infos[i].used)});
  }
  reading.processes = std::move(processes);
}

}  // namespace

NvmlReading read_nvml(const std::string& pci_bus_id) {
  NvmlReading reading;
  Handle device = nullptr;
  if (const int status = api().HandleByPciBusId(pci_bus_id.c_str(), &device); status != kSuccess) {
    reading.reason = failed("nvmlDeviceGetHandleByPciBusId", status);
    return reading;
  }
  unsigned int mig = 0, pending = 0;
  if (api().MigMode(device, &mig, &pending) == kSuccess && mig != 0) {
    reading.reason = "the GPU is split by MIG";
    return reading;
  }
  MemoryInfo memory{};
  if (const int status = api().MemoryInfo(device, &memory); status == kSuccess) {
    reading.gpu = {static_cast<int64_t>(memory.free), static_cast<int64_t>(memory.total)};
  } else {
    reading.reason = failed("nvmlDeviceGetMemoryInfo", status);
  }
  read_processes(device, reading);
  return reading;
}

}  // namespace qn
