// The adamw ops on device 0. Arguments are those of the CPU's ops; arrays are copied to the device and back.
//
//   adamwCuda({ … }) → { updateSquares, changedCodes, saturated }; a g that is a Uint16Array is bf16
//   storeRowsCuda({ … }, x), loadRowsCuda({ … }, out)
//   rowSquaresCuda(g f32 or bf16 [N, K], K) → f64[N]
//   adamwCudaTime({ N, K, mode, bf16, b }, iterations) → { microseconds, copyMicroseconds, copyBytes }
#include <algorithm>
#include <cstring>
#include <memory>

#include "binding/ops/adamw_args.h"
#include "core/cuda_device.h"
#include "core/cuda_timer.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

bool is_bf16(const Napi::Value& value) {
  return value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint16_array;
}

CudaBuffer on_device(const void* data, int64_t bytes) {
  CudaBuffer buffer(bytes);
  if (bytes > 0) buffer.upload(data);
  return buffer;
}

// Copies of named arrays of the argument object on the device, for as long as it lives.
class DeviceArrays {
 public:
  explicit DeviceArrays(const Napi::Object& object) : object_(object) {}

  // The copy of object[name]; null when that is absent or empty.
  void* copy(const char* name) {
    const Napi::Value value = object_.Get(name);
    if (!value.IsTypedArray()) return nullptr;
    const auto array = value.As<Napi::TypedArray>();
    if (array.ByteLength() == 0) return nullptr;
    void* host = bytes_of<void>(object_, name);
    copies_.push_back({host, on_device(host, static_cast<int64_t>(array.ByteLength()))});
    return copies_.back().device.as<void>();
  }
  void download() const {
    for (const Copy& each : copies_) each.device.download(each.host);
  }

 private:
  struct Copy {
    void* host;
    CudaBuffer device;
  };
  Napi::Object object_;
  std::vector<Copy> copies_;
};

Napi::Value adamw(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  AdamwArgs args = adamw_args_of(o);
  DeviceArrays arrays(o), gradient(o);
  void* g = gradient.copy("g");
  const bool bf16 = is_bf16(o.Get("g"));
  args.g = bf16 ? nullptr : static_cast<const float*>(g);
  args.g_bf16 = bf16 ? static_cast<const uint16_t*>(g) : nullptr;
  args.dense = arrays.copy("dense");
  args.master = arrays.copy("master");
  args.codes = static_cast<uint8_t*>(arrays.copy("codes"));
  args.scales = static_cast<uint8_t*>(arrays.copy("scales"));
  args.residual_codes = static_cast<uint8_t*>(arrays.copy("residualCodes"));
  args.residual_scales = static_cast<uint8_t*>(arrays.copy("residualScales"));
  args.m = {arrays.copy("mValues"), static_cast<uint8_t*>(arrays.copy("mScales")),
            static_cast<float*>(arrays.copy("mRows"))};
  args.v = {arrays.copy("vValues"), static_cast<uint8_t*>(arrays.copy("vScales")),
            static_cast<float*>(arrays.copy("vRows"))};
  std::vector<AdamwRow> rows(static_cast<size_t>(args.row_count));
  const CudaBuffer device_rows(args.row_count * static_cast<int64_t>(sizeof(AdamwRow)));
  adamw_cuda(device_rows.as<AdamwRow>(), args, nullptr);
  device_rows.download(rows.data());
  arrays.download();
  return adamw_totals(info.Env(), rows);
}

// A view whose arrays are copies on the device.
StoreRowsArgs device_store_args(const Napi::Object& o, DeviceArrays& arrays) {
  StoreRowsArgs args = store_args_of(o);
  args.view = {arrays.copy("values"), static_cast<uint8_t*>(arrays.copy("scales")),
               static_cast<float*>(arrays.copy("rows"))};
  return args;
}

Napi::Value store_rows(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  DeviceArrays arrays(o);
  const StoreRowsArgs args = device_store_args(o, arrays);
  const CudaBuffer x = on_device(array_data<float>(info[1]), args.row_count * args.K * 4);
  store_rows_cuda(args, x.as<float>(), nullptr);
  arrays.download();
  return info.Env().Undefined();
}

Napi::Value load_rows(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  DeviceArrays arrays(o);
  const StoreRowsArgs args = device_store_args(o, arrays);
  const CudaBuffer x(args.row_count * args.K * 4);
  load_rows_cuda(x.as<float>(), args, nullptr);
  if (x.bytes() > 0) x.download(array_data<float>(info[1]));
  return info.Env().Undefined();
}

Napi::Value row_squares(const Napi::CallbackInfo& info) {
  const auto array = info[0].As<Napi::TypedArray>();
  const int64_t K = integer(info[1]), N = static_cast<int64_t>(array.ElementLength()) / K;
  const bool bf16 = is_bf16(info[0]);
  const void* host = bf16 ? static_cast<void*>(array_data<uint16_t>(info[0])) : array_data<float>(info[0]);
  const CudaBuffer g = on_device(host, static_cast<int64_t>(array.ByteLength()));
  const CudaBuffer squares(N * static_cast<int64_t>(sizeof(double)));
  if (bf16) {
    row_squares_bf16_cuda(squares.as<double>(), g.as<uint16_t>(), N, K, {}, nullptr);
  } else {
    row_squares_cuda(squares.as<double>(), g.as<float>(), N, K, {}, nullptr);
  }
  auto out = Napi::Float64Array::New(info.Env(), static_cast<size_t>(N));
  squares.download(out.Data());
  return out;
}

// --- Time -----------------------------------------------------------------------------------------------------------

// Pseudo-random words (xorshift).
class Words {
 public:
  explicit Words(uint64_t seed) : state_(seed * 2654435769u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
  }

 private:
  uint64_t state_;
};

// A parameter [N, K] in NVFP4 with NVFP4 moments and a gradient, all random and on the device.
struct TimedParameter {
  CudaBuffer codes, scales, residual_codes, residual_scales, m, m_scales, m_rows, v, v_scales, v_rows, g, rows;
  AdamwArgs args;

  TimedParameter(int64_t N, int64_t K, WeightMode mode, bool bf16, uint64_t seed) {
    const int64_t count = N * K;
    const std::vector<uint8_t> zeros(static_cast<size_t>(count / 2));
    Words words(seed);
    std::vector<uint8_t> bytes(static_cast<size_t>(count / 2)), levels(static_cast<size_t>(count / 16));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(words.next() >> 32);
    for (uint8_t& level : levels) level = static_cast<uint8_t>(0x58 + (words.next() >> 32) % 16);  // 16 to 56
    codes = on_device(bytes.data(), count / 2);
    scales = on_device(levels.data(), count / 16);
    if (mode == WeightMode::kNvfp4Residual) {
      residual_codes = on_device(bytes.data(), count / 2);
      residual_scales = on_device(levels.data(), count / 16);
    }
    m = on_device(zeros.data(), count / 2);
    v = on_device(zeros.data(), count / 2);
    m_scales = on_device(zeros.data(), count / 16);
    v_scales = on_device(zeros.data(), count / 16);
    m_rows = on_device(std::vector<float>(static_cast<size_t>(N)).data(), N * 4);
    v_rows = on_device(std::vector<float>(static_cast<size_t>(N)).data(), N * 4);
    g = random_gradient(count, bf16, words);
    rows = CudaBuffer(N * static_cast<int64_t>(sizeof(AdamwRow)));
    args.row_count = N;
    args.K = K;
    args.g = bf16 ? nullptr : g.as<float>();
    args.g_bf16 = bf16 ? g.as<uint16_t>() : nullptr;
    args.storage = Storage::kNvfp4;
    args.mode = mode;
    args.codes = codes.as<uint8_t>();
    args.scales = scales.as<uint8_t>();
    args.residual_codes = residual_codes.as<uint8_t>();
    args.residual_scales = residual_scales.as<uint8_t>();
    args.moments = MomentFormat::kNvfp4;
    args.m = {m.as<void>(), m_scales.as<uint8_t>(), m_rows.as<float>()};
    args.v = {v.as<void>(), v_scales.as<uint8_t>(), v_rows.as<float>()};
    args.rate = 0.5f;  // of weights whose scales are 16 to 56
    args.seed = seed;
  }

  // About 1e-3 with signs, the sum of four uniform numbers.
  static CudaBuffer random_gradient(int64_t count, bool bf16, Words& words) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      const uint64_t word = words.next();
      float sum = 0;
      for (int part = 0; part < 4; ++part) sum += static_cast<float>((word >> (16 * part)) & 0xffff) * 0x1p-16f - 0.5f;
      value = sum * 1e-3f;
    }
    if (!bf16) return on_device(values.data(), count * 4);
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i)
      halves[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, values[i]) >> 16);
    return on_device(halves.data(), count * 2);
  }

  // Step t (from 0) with the gradient of `other`.
  void step(int64_t t, const TimedParameter& other, float b) {
    if (args.g_bf16 != nullptr) {
      args.g_bf16 = other.g.as<uint16_t>();
    } else {
      args.g = other.g.as<float>();
    }
    args.step = static_cast<uint32_t>(t + 1);
    args.a = t == 0 ? 1.0f : 0.1f;
    args.b = t == 0 ? 1.0f : b;
    adamw_cuda(rows.as<AdamwRow>(), args, nullptr);
  }
};

Napi::Value adamw_time(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const auto N = static_cast<int64_t>(number_of(o, "N", 0)), K = static_cast<int64_t>(number_of(o, "K", 0));
  const bool bf16 = o.Get("bf16").ToBoolean().Value();
  const bool residual = o.Get("mode").ToString().Utf8Value() == "nvfp4+residual";
  const WeightMode mode = residual ? WeightMode::kNvfp4Residual : WeightMode::kNvfp4;
  // As many matrices as make the caches useless.
  const int64_t bytes = N * K * (bf16 ? 2 : 4) + N * K * 27 / 16;
  const int64_t matrices = std::max<int64_t>(2, (int64_t{384} << 20) / bytes + 1);
  std::vector<std::unique_ptr<TimedParameter>> parameters;
  for (int64_t i = 0; i < matrices; ++i) {
    parameters.push_back(std::make_unique<TimedParameter>(N, K, mode, bf16, static_cast<uint64_t>(i + 1)));
  }
  // Gradients go round, so that moments meet others than their own.
  const auto step = [&](int64_t i, int64_t t, float rate) {
    parameters[static_cast<size_t>(i % matrices)]->step(t, *parameters[static_cast<size_t>((i + t) % matrices)], rate);
  };
  for (int64_t t = 0; t < 8; ++t) {
    for (int64_t i = 0; i < matrices; ++i) step(i, t, 1 / static_cast<float>(t + 1));
  }
  const auto b = static_cast<float>(number_of(o, "b", 0.001));
  const double microseconds = cuda_microseconds(integer(info[1]), [&](int64_t i) { step(i, 8 + i / matrices, b); });
  const CudaBuffer from(int64_t{1} << 30), to(int64_t{1} << 30);
  const double copy = cuda_microseconds(10, [&](int64_t) { cuda_copy(to.as<void>(), from.as<void>(), to.bytes()); });
  const auto result = Napi::Object::New(info.Env());
  result.Set("microseconds", microseconds);
  result.Set("copyMicroseconds", copy);
  result.Set("copyBytes", static_cast<double>(2 * to.bytes()));  // read and written
  return result;
}

#else
// Without CUDA code require_cuda() has thrown before these.
Napi::Value adamw(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value store_rows(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value load_rows(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value row_squares(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value adamw_time(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
#endif

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value with_cuda(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    return function(info);
  });
}

}  // namespace

void register_adamw_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("adamwCuda", Napi::Function::New(env, with_cuda<adamw>));
  ops.Set("storeRowsCuda", Napi::Function::New(env, with_cuda<store_rows>));
  ops.Set("loadRowsCuda", Napi::Function::New(env, with_cuda<load_rows>));
  ops.Set("rowSquaresCuda", Napi::Function::New(env, with_cuda<row_squares>));
  ops.Set("adamwCudaTime", Napi::Function::New(env, with_cuda<adamw_time>));
}

}  // namespace qn
