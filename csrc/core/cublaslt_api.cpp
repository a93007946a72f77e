#include "core/cublaslt_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "core/status.h"

namespace qn::cublaslt {

namespace {

// The functions above have not changed between these; newer first.
std::vector<std::string> candidates() {
  if (const char* chosen = std::getenv("QN_CUBLASLT"); chosen && *chosen) return {chosen};
  const std::vector<std::string> names{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  std::vector<std::string> paths = names;
  std::vector<std::string> homes{"/usr/local/cuda"};
  if (const char* home = std::getenv("CUDA_HOME"); home && *home) homes.insert(homes.begin(), home);
  for (const std::string& home : homes) {
    for (const std::string& name : names) paths.push_back(home + "/lib64/" + name);
  }
  return paths;
}

void* open_library(std::string& path) {
  std::string reasons;
  for (const std::string& candidate : candidates()) {
    if (void* library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      path = candidate;
      return library;
    }
    const char* reason = dlerror();
    reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : candidate.c_str());
  }
  fail(Code::kCudaUnavailable,
       "cuBLASLt cannot be opened; install the CUDA libraries, add their folder to LD_LIBRARY_PATH or name the file in "
       "QN_CUBLASLT. Tried: %s",
       reasons.c_str());
}

template <typename Function>
void bind(Function& function, void* library, const std::string& path, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) fail(Code::kCudaUnavailable, "%s has no %s; CUDA 12.8 or newer is needed", path.c_str(), name);
}

Api load() {
  std::string path;
  void* library = open_library(path);
  Api api{};
  bind(api.Create, library, path, "cublasLtCreate");
  bind(api.Destroy, library, path, "cublasLtDestroy");
  bind(api.GetVersion, library, path, "cublasLtGetVersion");
  bind(api.GetStatusName, library, path, "cublasLtGetStatusName");
  bind(api.MatmulDescCreate, library, path, "cublasLtMatmulDescCreate");
  bind(api.MatmulDescDestroy, library, path, "cublasLtMatmulDescDestroy");
  bind(api.MatmulDescSetAttribute, library, path, "cublasLtMatmulDescSetAttribute");
  bind(api.MatrixLayoutCreate, library, path, "cublasLtMatrixLayoutCreate");
  bind(api.MatrixLayoutDestroy, library, path, "cublasLtMatrixLayoutDestroy");
  bind(api.MatmulPreferenceCreate, library, path, "cublasLtMatmulPreferenceCreate");
  bind(api.MatmulPreferenceDestroy, library, path, "cublasLtMatmulPreferenceDestroy");
  bind(api.MatmulPreferenceSetAttribute, library, path, "cublasLtMatmulPreferenceSetAttribute");
  bind(api.MatmulAlgoGetHeuristic, library, path, "cublasLtMatmulAlgoGetHeuristic");
  bind(api.Matmul, library, path, "cublasLtMatmul");
  return api;
}

}  // namespace

const Api& api() {
  static const Api loaded = load();  // a throw leaves it unmade
  return loaded;
}

void check(Status status, const char* call) {
  if (status == 0) return;
  fail(status == kNotSupported ? Code::kUnsupported : Code::kCudaFailure, "%s failed: %s (%d)", call,
       api().GetStatusName(status), status);
}

}  // namespace qn::cublaslt
