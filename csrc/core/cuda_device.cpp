#include "core/cuda_device.h"

#include <utility>

#include "core/cuda_check.h"
#include "core/status.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

void require_cuda(int index) {
  const CudaProbe probe = probe_cuda();
  if (probe.devices == 0) fail(Code::kCudaUnavailable, "CUDA cannot be used: %s", probe.reason.c_str());
  if (index < probe.devices) return;
  fail(Code::kCudaUnavailable, "CUDA cannot be used: cuda:%d was asked and the NVIDIA driver sees %d device%s", index,
       probe.devices, probe.devices == 1 ? "" : "s");
}

void CudaBuffer::swap(CudaBuffer& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

#if defined(QN_WITH_CUDA)

namespace {

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string reason_of(cudaError_t status) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "no NVIDIA driver is installed (libcuda.so.1 was not found)";
  }
  if (status == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + version_name(driver) + " and this build needs " +
           version_name(CUDART_VERSION) + "; update the driver";
  }
  if (status == cudaErrorNoDevice || status == cudaSuccess) {
    return "the NVIDIA driver sees no device; check nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  return std::string("the NVIDIA driver failed: ") + cudaGetErrorString(status);
}

}  // namespace

CudaProbe probe_cuda() {
  CudaProbe probe;
  probe.built = true;
  const cudaError_t status = cudaGetDeviceCount(&probe.devices);
  if (status != cudaSuccess || probe.devices == 0) {
    probe.devices = 0;
    probe.reason = reason_of(status);
    cudaGetLastError();
  }
  return probe;
}

void cuda_fail(int status, const char* call, const char* file, int line) {
  const auto error = static_cast<cudaError_t>(status);
  cudaGetLastError();
  const Code code = error == cudaErrorMemoryAllocation ? Code::kOutOfMemory : Code::kCudaFailure;
  fail(code, "%s failed: %s (%s, %s:%d)", call, cudaGetErrorString(error), cudaGetErrorName(error), file, line);
}

CudaBuffer::CudaBuffer(int64_t bytes) : bytes_(bytes) {
  if (bytes > 0) QN_CUDA_CHECK(cudaMalloc(&data_, static_cast<size_t>(bytes)));
}

// A failure here has no one to tell: the device is gone, and its memory with it.
CudaBuffer::~CudaBuffer() { cudaFree(data_); }

void CudaBuffer::upload(const void* from) {
  QN_CUDA_CHECK(cudaMemcpy(data_, from, static_cast<size_t>(bytes_), cudaMemcpyHostToDevice));
}

void CudaBuffer::download(void* to) const {
  QN_CUDA_CHECK(cudaMemcpy(to, data_, static_cast<size_t>(bytes_), cudaMemcpyDeviceToHost));
}

#else

CudaProbe probe_cuda() {
  CudaProbe probe;
  probe.reason = "this build has no CUDA code; install a CUDA toolkit, set CUDA_HOME and rebuild with QN_CUDA=on";
  return probe;
}

void cuda_fail(int status, const char* call, const char* file, int line) {
  fail(Code::kCudaFailure, "%s failed with status %d (%s:%d)", call, status, file, line);
}

CudaBuffer::CudaBuffer(int64_t) { require_cuda(); }
CudaBuffer::~CudaBuffer() = default;
void CudaBuffer::upload(const void*) { require_cuda(); }
void CudaBuffer::download(void*) const { require_cuda(); }

#endif

}  // namespace qn
