// Matrix products on device 0 from host arrays, bf16 as Uint16Array (y, dw: or Float32Array):
//   linearCuda(y, x, weight | weight[], T, accumulate, { sliceBytes?, gemvTokens? })
//   linearBackwardInputCuda(dx, dy, weight | weight[], T, accumulate, { sliceBytes? })
//   linearBackwardWeightCuda(dw, dy, x, T, N, K, rowBegin, rowCount, accumulate)
// and for benchmarks, on random data, as microseconds per launch inside a CUDA graph:
//   linearCudaTime('forward' | 'input' | 'weight', 'nvfp4' | 'nf4' | 'bf16', { T, N, K, parts?, sliceBytes?,
//   gemvTokens?,
//                  ringBytes }, replays)    parts: how many weights of N / parts rows are one stack
//   readCudaTime(bytes, ringBytes, replays)
//   copyCudaTime(bytes, ringBytes, replays)
// which walk through distinct weights of ringBytes in all, so that none is in L2 when it is read.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "binding/ops/cuda_ops.h"
#include "core/cublaslt.h"
#include "core/cuda_graph_timer.h"
#include "ops/linear.h"
#include "ops/read_words.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

// Made at the first use, on device 0, which is the current one unless someone chose another. Never destroyed: when the
// process ends, the driver may be gone before it.
CublasLt& blas() {
  static CublasLt* const instance = new CublasLt();
  return *instance;
}

// One weight or an array of them.
struct DeviceStack {
  std::vector<DeviceWeight> weights;
  std::vector<WeightView> views;

  explicit DeviceStack(const Napi::Value& value) {
    if (value.IsArray()) {
      const auto array = value.As<Napi::Array>();
      for (uint32_t i = 0; i < array.Length(); ++i) weights.emplace_back(weight_view(array.Get(i)));
    } else {
      weights.emplace_back(weight_view(value));
    }
    for (const DeviceWeight& weight : weights) views.push_back(weight.view);
  }
  WeightStack stack() const { return {views.data(), static_cast<int>(views.size())}; }
};

int64_t slice_bytes_of(const Napi::Value& options) { return option(options, "sliceBytes", kLinearSliceBytes); }

struct Scratch {
  CudaBuffer buffer;
  LinearCuda cuda;
  explicit Scratch(int64_t bytes, const Napi::Value& options)
      : buffer(bytes), cuda{blas(), buffer.as<void>(), bytes, nullptr} {
    cuda.gemv_tokens = option(options, "gemvTokens");
  }
};

void run_linear(const Napi::CallbackInfo& info) {
  const DeviceArray y(info[0]), x(info[1]);
  const DeviceStack w(info[2]);
  const Scratch scratch(linear_cuda_scratch_bytes(w.stack(), slice_bytes_of(info[5])), info[5]);
  linear_cuda(y.buffer.as<void>(), y.type, x.bf16(), w.stack(), integer(info[3]), flag(info[4]), scratch.cuda);
  y.download();
}

void run_backward_input(const Napi::CallbackInfo& info) {
  const DeviceArray dx(info[0]), dy(info[1]);
  const DeviceStack w(info[2]);
  const int64_t T = integer(info[3]);
  const Scratch scratch(linear_backward_input_cuda_scratch_bytes(w.stack(), T, slice_bytes_of(info[5])), info[5]);
  linear_backward_input_cuda(dx.bf16(), dy.bf16(), w.stack(), T, flag(info[4]), scratch.cuda);
  dx.download();
}

void run_backward_weight(const Napi::CallbackInfo& info) {
  const DeviceArray dw(info[0]), dy(info[1]), x(info[2]);
  const Scratch scratch(linear_backward_weight_cuda_scratch_bytes(), info[9]);
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

double time_linear(const std::string& product, Storage storage, const Napi::Value& dims, int64_t replays) {
  const int64_t T = option(dims, "T"), N = option(dims, "N"), K = option(dims, "K"), parts = option(dims, "parts", 1);
  const bool packed = is_packed(storage);
  const int64_t weight_bytes = packed ? N * K / 16 * 9 : 2 * N * K;
  const int64_t weights = std::max<int64_t>(1, (option(dims, "ringBytes") + weight_bytes - 1) / weight_bytes);
  const bool uses_weight = product != "weight";
  const CudaBuffer codes = random_bytes(uses_weight && packed ? weights * N * K / 2 : 0, 0, 256);
  const CudaBuffer scales =
      random_bytes(uses_weight && packed ? weights * N * K / 16 : 0, 0x28, 0x15);  // as f32 small too
  const CudaBuffer dense = random_bf16(uses_weight && !packed ? weights * N * K : 0);
  const CudaBuffer x = random_bf16(T * K), y = random_bf16(T * N), dw(product == "weight" ? N * K * 2 : 0);
  std::vector<WeightView> views(static_cast<size_t>(parts));
  const WeightStack stack(views.data(), static_cast<int>(parts));
  const auto place = [&](int64_t i) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at = i * N * K + part * (N / parts) * K;
      WeightView& w = views[static_cast<size_t>(part)];
      w.storage = storage;
      w.rows = N / parts;
      w.cols = K;
      w.packed = {codes.as<uint8_t>() + at / 2, scales.as<uint8_t>() + at / 16, part % 2 == 0 ? 1.0f : 0.5f};
      w.bnb4 = {codes.as<uint8_t>() + at / 2, scales.as<float>() + at / kBnb4BlockSize, Codebook::kNf4};
      w.dense = dense.as<uint16_t>() + at;
    }
  };
  place(0);
  const int64_t slice_bytes = slice_bytes_of(dims);
  const Scratch scratch(std::max({linear_cuda_scratch_bytes(stack, slice_bytes),
                                  linear_backward_input_cuda_scratch_bytes(stack, T, slice_bytes),
                                  linear_backward_weight_cuda_scratch_bytes()}),
                        dims);
  return cuda_graph_microseconds(weights, replays, [&](int64_t i, CudaStream stream) {
    LinearCuda cuda = scratch.cuda;
    cuda.stream = stream;
    place(i);
    if (product == "forward") {
      linear_cuda(y.as<void>(), CudaFloat::kBF16, x.as<uint16_t>(), stack, T, false, cuda);
    } else if (product == "input") {
      linear_backward_input_cuda(x.as<uint16_t>(), y.as<uint16_t>(), stack, T, false, cuda);
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
  const std::string form = info[1].ToString().Utf8Value();
  const Storage storage = form == "nvfp4" ? Storage::kNvfp4 : form == "nf4" ? Storage::kBnb4 : Storage::kBF16;
  return number_of(info, time_linear(product, storage, info[2], integer(info[3])));
}

Napi::Value run_time_read(const Napi::CallbackInfo& info) {
  return number_of(info, time_read(integer(info[0]), integer(info[1]), integer(info[2]), false));
}

Napi::Value run_time_copy(const Napi::CallbackInfo& info) {
  return number_of(info, time_read(integer(info[0]), integer(info[1]), integer(info[2]), true));
}

#endif

}  // namespace

void register_linear_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("linearCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_linear)>, "linearCuda"));
  ops.Set("linearBackwardInputCuda",
          Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_backward_input)>, "linearBackwardInputCuda"));
  ops.Set("linearBackwardWeightCuda",
          Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_backward_weight)>, "linearBackwardWeightCuda"));
  ops.Set("linearCudaTime",
          Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(run_time_linear)>, "linearCudaTime"));
  ops.Set("readCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(run_time_read)>, "readCudaTime"));
  ops.Set("copyCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(run_time_copy)>, "copyCudaTime"));
}

}  // namespace qn
