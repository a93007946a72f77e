// Matrix products on device 0 from host arrays, bf16 as Uint16Array (y, dw: or Float32Array):
//   linearCuda(y, x, weight, T, accumulate, { extraScratch? })
//   linearBackwardInputCuda(dx, dy, weight, T, accumulate, { extraScratch? })
//   linearBackwardWeightCuda(dw, dy, x, T, N, K, rowBegin, rowCount, accumulate)
// and for benchmarks, on random data, as microseconds per launch inside a CUDA graph:
//   linearCudaTime('forward' | 'input' | 'weight', 'nvfp4' | 'bf16', { T, N, K, extraScratch?, ringBytes }, replays)
//   readCudaTime(bytes, ringBytes, replays)
//   copyCudaTime(bytes, ringBytes, replays)
// which walk through distinct weights of ringBytes in all, so that none is in L2 when it is read.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "binding/ops/ops.h"
#include "core/cublaslt.h"
#include "core/cuda_device.h"
#include "core/cuda_graph_timer.h"
#include "ops/linear.h"
#include "ops/read_words.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

bool flag(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

int64_t option(const Napi::Value& options, const char* name) {
  if (!options.IsObject()) return 0;
  const Napi::Value value = options.As<Napi::Object>().Get(name);
  return value.IsNumber() ? integer(value) : 0;
}

// Made at the first use, on device 0, which is the current one unless someone chose another. Never destroyed: when the
// process ends, the driver may be gone before it.
CublasLt& blas() {
  static CublasLt* const instance = new CublasLt();
  return *instance;
}

// A bf16 or f32 typed array's memory and its copy on the device.
struct DeviceArray {
  void* host = nullptr;
  CudaFloat type = CudaFloat::kBF16;
  CudaBuffer buffer;

  explicit DeviceArray(const Napi::Value& value) {
    if (value.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array) {
      host = array_data<float>(value);
      type = CudaFloat::kF32;
    } else {
      host = array_data<uint16_t>(value);
    }
    buffer = CudaBuffer(static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength()));
    if (buffer.bytes() > 0) buffer.upload(host);
  }
  uint16_t* bf16() const { return buffer.as<uint16_t>(); }
  void download() const {
    if (buffer.bytes() > 0) buffer.download(host);
  }
};

CudaBuffer on_device(const void* data, int64_t bytes) {
  CudaBuffer buffer(data ? bytes : 0);
  if (buffer.bytes() > 0) buffer.upload(data);
  return buffer;
}

// A weight whose arrays are copies on the device.
struct DeviceWeight {
  WeightView view;
  std::vector<CudaBuffer> buffers;

  explicit DeviceWeight(const WeightView& host) : view(host) {
    const int64_t count = host.rows * host.cols;
    view.dense = copy(host.dense, count * (host.storage == Storage::kF32 ? 4 : 2));
    view.packed.codes = copy(host.packed.codes, count / 2);
    view.packed.scales = copy(host.packed.scales, count / 16);
    view.residual.codes = copy(host.residual.codes, count / 2);
    view.residual.scales = copy(host.residual.scales, count / 16);
  }

 private:
  const uint8_t* copy(const void* data, int64_t bytes) {
    buffers.push_back(on_device(data, bytes));
    return buffers.back().as<uint8_t>();
  }
};

struct Scratch {
  CudaBuffer buffer;
  LinearCuda cuda;
  explicit Scratch(int64_t bytes) : buffer(bytes), cuda{blas(), buffer.as<void>(), bytes, nullptr} {}
};

void run_linear(const Napi::CallbackInfo& info) {
  const DeviceArray y(info[0]), x(info[1]);
  const DeviceWeight w(weight_view(info[2]));
  const Scratch scratch(linear_cuda_scratch_bytes(w.view) + option(info[5], "extraScratch"));
  linear_cuda(y.buffer.as<void>(), y.type, x.bf16(), w.view, integer(info[3]), flag(info[4]), scratch.cuda);
  y.download();
}

void run_backward_input(const Napi::CallbackInfo& info) {
  const DeviceArray dx(info[0]), dy(info[1]);
  const DeviceWeight w(weight_view(info[2]));
  const int64_t T = integer(info[3]);
  const Scratch scratch(linear_backward_input_cuda_scratch_bytes(w.view, T) + option(info[5], "extraScratch"));
  linear_backward_input_cuda(dx.bf16(), dy.bf16(), w.view, T, flag(info[4]), scratch.cuda);
  dx.download();
}

void run_backward_weight(const Napi::CallbackInfo& info) {
  const DeviceArray dw(info[0]), dy(info[1]), x(info[2]);
  const Scratch scratch(linear_backward_weight_cuda_scratch_bytes());
  linear_backward_weight_cuda({.dw = dw.buffer.as<void>(),
                               .dy = dy.bf16(),
                               .x = x.bf16(),
                               .T = integer(info[3]),
                               .N = integer(info[4]),
                               .K = integer(info[5]),
                               .row_begin = integer(info[6]),
                               .row_count = integer(info[7]),
                               .dw_type = dw.type,
                               .accumulate = flag(info[8])},
                              scratch.cuda);
  dw.download();
}

// `bytes` on the device of low + random % span, 64 MiB of them made on the host and repeated (xorshift, Marsaglia
// 2003).
CudaBuffer random_bytes(int64_t bytes, uint32_t low, uint32_t span) {
  std::vector<uint8_t> first(static_cast<size_t>(std::min<int64_t>(bytes, int64_t{64} << 20)));
  uint32_t state = 2463534242u;
  for (uint8_t& byte : first) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    byte = static_cast<uint8_t>(low + (state >> 8) % span);
  }
  const auto piece = static_cast<int64_t>(first.size());
  CudaBuffer seed = on_device(first.data(), piece);
  CudaBuffer all(bytes);
  for (int64_t at = 0; at < bytes; at += piece) {
    cuda_copy(all.as<uint8_t>() + at, seed.as<uint8_t>(), std::min(piece, bytes - at), nullptr);
  }
  return all;  // freeing `seed` waits for the copies
}

// bf16 values over ±[0.5, 2): a high byte of 0x3f or 0xbf with any low byte.
CudaBuffer random_bf16(int64_t count) {
  std::vector<uint16_t> first(static_cast<size_t>(std::min<int64_t>(count, int64_t{16} << 20)));
  uint32_t state = 88172645u;
  for (uint16_t& value : first) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    value = static_cast<uint16_t>(0x3f00u | (state & 0x80ffu));
  }
  const auto piece = static_cast<int64_t>(first.size());
  CudaBuffer seed = on_device(first.data(), piece * 2);
  CudaBuffer all(count * 2);
  for (int64_t at = 0; at < count; at += piece) {
    cuda_copy(all.as<uint16_t>() + at, seed.as<uint16_t>(), std::min(piece, count - at) * 2, nullptr);
  }
  return all;
}

double time_linear(const std::string& product, bool nvfp4, const Napi::Value& dims, int64_t replays) {
  const int64_t T = option(dims, "T"), N = option(dims, "N"), K = option(dims, "K");
  const int64_t weight_bytes = nvfp4 ? N * K / 16 * 9 : 2 * N * K;
  const int64_t weights = std::max<int64_t>(1, (option(dims, "ringBytes") + weight_bytes - 1) / weight_bytes);
  WeightView w;
  w.storage = nvfp4 ? Storage::kNvfp4 : Storage::kBF16;
  w.rows = N;
  w.cols = K;
  const bool uses_weight = product != "weight";
  const CudaBuffer codes = random_bytes(uses_weight && nvfp4 ? weights * N * K / 2 : 0, 0, 256);
  const CudaBuffer scales = random_bytes(uses_weight && nvfp4 ? weights * N * K / 16 : 0, 0x28, 0x15);
  const CudaBuffer dense = random_bf16(uses_weight && !nvfp4 ? weights * N * K : 0);
  const CudaBuffer x = random_bf16(T * K), y = random_bf16(T * N), dw(product == "weight" ? N * K * 2 : 0);
  w.packed = {codes.as<uint8_t>(), scales.as<uint8_t>(), 1.0f};
  const int64_t bytes = std::max({linear_cuda_scratch_bytes(w), linear_backward_input_cuda_scratch_bytes(w, T),
                                  linear_backward_weight_cuda_scratch_bytes()}) +
                        option(dims, "extraScratch");
  const Scratch scratch(bytes);
  return cuda_graph_microseconds(weights, replays, [&](int64_t i, CudaStream stream) {
    LinearCuda cuda = scratch.cuda;
    cuda.stream = stream;
    w.packed.codes = codes.as<uint8_t>() + i * (N * K / 2);
    w.packed.scales = scales.as<uint8_t>() + i * (N * K / 16);
    w.dense = dense.as<uint16_t>() + i * (N * K);
    if (product == "forward") {
      linear_cuda(y.as<void>(), CudaFloat::kBF16, x.as<uint16_t>(), w, T, false, cuda);
    } else if (product == "input") {
      linear_backward_input_cuda(x.as<uint16_t>(), y.as<uint16_t>(), w, T, false, cuda);
    } else {
      linear_backward_weight_cuda(
          {dw.as<void>(), y.as<uint16_t>(), x.as<uint16_t>(), T, N, K, 0, N, CudaFloat::kBF16, false}, cuda);
    }
  });
}

double time_read(int64_t bytes, int64_t ring_bytes, int64_t replays, bool copy) {
  const int64_t pieces = std::max<int64_t>(1, ring_bytes / bytes);
  const CudaBuffer data = random_bytes(pieces * bytes, 0, 256), to(copy ? bytes : 16);
  return cuda_graph_microseconds(pieces, replays, [&](int64_t i, CudaStream stream) {
    const uint8_t* from = data.as<uint8_t>() + i * bytes;
    if (copy) {
      cuda_copy(to.as<void>(), from, bytes, stream);
    } else {
      read_words_cuda(to.as<uint32_t>(), from, bytes, stream);
    }
  });
}

Napi::Value number_of(const Napi::CallbackInfo& info, double value) { return Napi::Number::New(info.Env(), value); }

Napi::Value run_time_linear(const Napi::CallbackInfo& info) {
  const std::string product = info[0].ToString().Utf8Value();
  return number_of(info, time_linear(product, info[1].ToString().Utf8Value() == "nvfp4", info[2], integer(info[3])));
}

Napi::Value run_time_read(const Napi::CallbackInfo& info) {
  return number_of(info, time_read(integer(info[0]), integer(info[1]), integer(info[2]), false));
}

Napi::Value run_time_copy(const Napi::CallbackInfo& info) {
  return number_of(info, time_read(integer(info[0]), integer(info[1]), integer(info[2]), true));
}

#else
// Without CUDA code require_cuda() has thrown before these.
void run_linear(const Napi::CallbackInfo&) {}
void run_backward_input(const Napi::CallbackInfo&) {}
void run_backward_weight(const Napi::CallbackInfo&) {}
Napi::Value run_time_linear(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value run_time_read(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value run_time_copy(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
#endif

template <void (*run)(const Napi::CallbackInfo&)>
void with_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    run(info);
  });
}

template <Napi::Value (*run)(const Napi::CallbackInfo&)>
Napi::Value timed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    return run(info);
  });
}

}  // namespace

void register_linear_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("linearCuda", Napi::Function::New<with_cuda<run_linear>>(env, "linearCuda"));
  ops.Set("linearBackwardInputCuda",
          Napi::Function::New<with_cuda<run_backward_input>>(env, "linearBackwardInputCuda"));
  ops.Set("linearBackwardWeightCuda",
          Napi::Function::New<with_cuda<run_backward_weight>>(env, "linearBackwardWeightCuda"));
  ops.Set("linearCudaTime", Napi::Function::New<timed<run_time_linear>>(env, "linearCudaTime"));
  ops.Set("readCudaTime", Napi::Function::New<timed<run_time_read>>(env, "readCudaTime"));
  ops.Set("copyCudaTime", Napi::Function::New<timed<run_time_copy>>(env, "copyCudaTime"));
}

}  // namespace qn
