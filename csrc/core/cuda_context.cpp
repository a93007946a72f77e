#include "core/cuda_context.h"

#include <utility>

#include "core/cuda_check.h"
#include "core/status.h"

#if defined(QN_WITH_CUDA)
#include <cuda_runtime.h>
#endif

namespace qn {

void PinnedBuffer::swap(PinnedBuffer& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

#if defined(QN_WITH_CUDA)

namespace {

cudaStream_t stream_of(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

CudaMemory::CudaMemory(int index, CudaStream stream) : index_(index), stream_(stream) {
  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location = {cudaMemLocationTypeDevice, index};
  cudaMemPool_t pool = nullptr;
  QN_CUDA_CHECK(cudaMemPoolCreate(&pool, &props));
  pool_ = pool;
  uint64_t keep = UINT64_MAX;
  QN_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
}

// A failure here and in free() has no one to tell: the device is gone, and its memory with it.
CudaMemory::~CudaMemory() { cudaMemPoolDestroy(static_cast<cudaMemPool_t>(pool_)); }

void* CudaMemory::allocate(int64_t bytes, bool zeroed) {
  QN_CUDA_CHECK(cudaSetDevice(index_));
  void* data = nullptr;
  const auto size = static_cast<size_t>(Arena::aligned(bytes));
  const auto pool = static_cast<cudaMemPool_t>(pool_);
  cudaError_t status = cudaMallocFromPoolAsync(&data, size, pool, stream_of(stream_));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    trim();  // what is free may be in pieces
    status = cudaMallocFromPoolAsync(&data, size, pool, stream_of(stream_));
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  if (status != cudaSuccess) cuda_fail(status, "cudaMallocFromPoolAsync", __FILE__, __LINE__);
  if (zeroed) QN_CUDA_CHECK(cudaMemsetAsync(data, 0, size, stream_of(stream_)));
  return data;
}

void CudaMemory::free(void* data) noexcept {
  cudaSetDevice(index_);
  cudaFreeAsync(data, stream_of(stream_));
}

std::string CudaMemory::describe_free() {
  size_t available = 0, total = 0;
  if (cudaSetDevice(index_) != cudaSuccess || cudaMemGetInfo(&available, &total) != cudaSuccess) {
    cudaGetLastError();
    return "";
  }
  return ", " + std::to_string(available) + " of " + std::to_string(total) + " bytes of the GPU are free";
}

void CudaMemory::trim() {
  QN_CUDA_CHECK(cudaSetDevice(index_));
  QN_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream_)));
  QN_CUDA_CHECK(cudaMemPoolTrimTo(static_cast<cudaMemPool_t>(pool_), 0));
}

int64_t CudaMemory::kept() {
  const auto pool = static_cast<cudaMemPool_t>(pool_);
  uint64_t reserved = 0, used = 0;
  QN_CUDA_CHECK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
  QN_CUDA_CHECK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used));
  return static_cast<int64_t>(reserved) - static_cast<int64_t>(used);
}

CudaContext::Stream::~Stream() {
  if (value) cudaStreamDestroy(stream_of(value));
}

CudaContext::CudaContext(int index) : index_(index) {
  require_cuda(index);
  make_current();
  cudaDeviceProp properties{};
  QN_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  name_ = properties.name;
  capability_ = properties.major * 10 + properties.minor;
  int pools = 0;
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, index));
  if (!pools) fail(Code::kCudaUnavailable, "CUDA cannot be used: %s has no memory pools", name_.c_str());
  cudaStream_t stream = nullptr;
  QN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.value = stream;
  memory_ = std::make_unique<CudaMemory>(index, stream);
  blas_ = std::make_unique<CublasLt>();
}

CudaContext::~CudaContext() { cudaSetDevice(index_); }

void CudaContext::make_current() const { QN_CUDA_CHECK(cudaSetDevice(index_)); }

void CudaContext::synchronize() { QN_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream()))); }

void CudaContext::check() {
  const cudaError_t status = cudaStreamQuery(stream_of(stream()));
  if (status != cudaSuccess && status != cudaErrorNotReady) cuda_fail(status, "a launch", __FILE__, __LINE__);
}

// From pageable memory the call returns once the bytes are staged.
void CudaContext::copy_in(void* to, const void* from, int64_t bytes) {
  QN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_of(stream())));
}

void CudaContext::copy_out(void* to, const void* from, int64_t bytes) {
  QN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_of(stream())));
  synchronize();
}

void CudaContext::copy(void* to, const void* from, int64_t bytes) {
  QN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_of(stream())));
}

void CudaContext::zero(void* to, int64_t bytes) {
  QN_CUDA_CHECK(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_of(stream())));
}

void CudaContext::copy_in_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t width,
                               int64_t rows) {
  QN_CUDA_CHECK(cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride), from, static_cast<size_t>(from_stride),
                                  static_cast<size_t>(width), static_cast<size_t>(rows), cudaMemcpyHostToDevice,
                                  stream_of(stream())));
}

CudaContext::Free CudaContext::free_memory() const {
  make_current();
  size_t available = 0, total = 0;
  QN_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return {static_cast<int64_t>(available), static_cast<int64_t>(total)};
}

CudaEvent::~CudaEvent() {
  if (event_) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void CudaEvent::record(CudaContext& context) {
  if (!event_) {
    cudaEvent_t event = nullptr;
    QN_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    event_ = event;
  }
  QN_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream_of(context.stream())));
}

void CudaEvent::wait() {
  if (event_) QN_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)));
}

PinnedBuffer::PinnedBuffer(int64_t bytes) : bytes_(bytes) {
  if (bytes > 0) QN_CUDA_CHECK(cudaMallocHost(&data_, static_cast<size_t>(bytes)));
}
PinnedBuffer::~PinnedBuffer() {
  if (data_) cudaFreeHost(data_);
}

#else

CudaMemory::CudaMemory(int index, CudaStream stream) : index_(index), stream_(stream) { require_cuda(); }
CudaMemory::~CudaMemory() = default;
void* CudaMemory::allocate(int64_t, bool) { return nullptr; }
void CudaMemory::free(void*) noexcept {}
std::string CudaMemory::describe_free() { return ""; }
void CudaMemory::trim() {}
int64_t CudaMemory::kept() { return 0; }

CudaContext::Stream::~Stream() = default;
CudaContext::CudaContext(int index) : index_(index) { require_cuda(); }
CudaContext::~CudaContext() = default;
void CudaContext::make_current() const {}
void CudaContext::synchronize() {}
void CudaContext::check() {}
void CudaContext::copy_in(void*, const void*, int64_t) {}
void CudaContext::copy_out(void*, const void*, int64_t) {}
void CudaContext::copy(void*, const void*, int64_t) {}
void CudaContext::zero(void*, int64_t) {}
void CudaContext::copy_in_rows(void*, int64_t, const void*, int64_t, int64_t, int64_t) {}
CudaContext::Free CudaContext::free_memory() const { return {0, 0}; }

CudaEvent::~CudaEvent() = default;
void CudaEvent::record(CudaContext&) {}
void CudaEvent::wait() {}

PinnedBuffer::PinnedBuffer(int64_t) { require_cuda(); }
PinnedBuffer::~PinnedBuffer() = default;

#endif

}  // namespace qn
