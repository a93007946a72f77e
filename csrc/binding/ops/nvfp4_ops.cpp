// NVFP4 ops: quantizeNvfp4(codes, scales, x, N, K, { globalScale, rounding, scaleRule, seed, parameter, step, stream,
// firstRow }), dequantizeNvfp4(out, codes, scales, N, K, { globalScale }), amax(x, N, K), twoLevelGlobalScale(amax),
// toBlockedScales(blocked, scales, rows, cols), fromBlockedScales(scales, blocked, rows, cols), and the scalar codecs.
// quantizeNvfp4Cuda, amaxCuda and dequantizeNvfp4Cuda take the same arguments, a Uint16Array (bf16) for a Float32Array
// too, and copy them to device 0 and back. For benchmarks, on random data of the tensor [N, K], distinct ones of
// ringBytes of bf16 in all, as microseconds per launch inside a CUDA graph:
//   nvfp4CudaTime('dequantize' | 'quantize' | 'amax', { N, K, ringBytes }, replays)
#include <algorithm>
#include <string>

#include "binding/ops/cuda_ops.h"
#include "core/cuda_graph_timer.h"
#include "ops/quantize.h"

namespace qn {

namespace {

Napi::Object options_of(const Napi::CallbackInfo& info) {
  const Napi::Value last = info[info.Length() - 1];
  return last.IsObject() && !last.IsTypedArray() ? last.As<Napi::Object>() : Napi::Object::New(info.Env());
}

double number_option(const Napi::Object& options, const char* name, double otherwise) {
  return options.Has(name) ? options.Get(name).As<Napi::Number>().DoubleValue() : otherwise;
}

Rounding rounding_option(const Napi::Object& options) {
  const bool stochastic =
      options.Has("rounding") && options.Get("rounding").As<Napi::String>().Utf8Value() == "stochastic";
  return stochastic ? Rounding::kStochastic : Rounding::kNearestEven;
}

ScaleRule scale_rule_option(const Napi::Object& options) {
  const std::string name = options.Has("scaleRule") ? options.Get("scaleRule").As<Napi::String>().Utf8Value() : "amax";
  return name == "four-over-six" ? ScaleRule::kFourOverSix : name == "amax-up" ? ScaleRule::kAmaxUp : ScaleRule::kAmax;
}

uint64_t seed_option(const Napi::Object& options) {
  if (!options.Has("seed")) return 0;
  const Napi::Value seed = options.Get("seed");
  if (!seed.IsBigInt()) return static_cast<uint64_t>(seed.As<Napi::Number>().Int64Value());
  bool lossless = false;
  return seed.As<Napi::BigInt>().Uint64Value(&lossless);
}

bool is_bf16(const Napi::Value& value) {
  return value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint16_array;
}

QuantizeArgs quantize_args(const Napi::CallbackInfo& info) {
  const Napi::Object options = options_of(info);
  QuantizeArgs args{};
  args.codes = array_data<uint8_t>(info[0]);
  args.scales = array_data<uint8_t>(info[1]);
  args.x = is_bf16(info[2]) ? nullptr : array_data<float>(info[2]);
  args.N = integer(info[3]);
  args.K = integer(info[4]);
  args.global_scale = static_cast<float>(number_option(options, "globalScale", 1));
  args.rounding = rounding_option(options);
  args.scale_rule = scale_rule_option(options);
  args.random.seed = seed_option(options);
  args.random.parameter = static_cast<uint32_t>(number_option(options, "parameter", 0));
  args.random.step = static_cast<uint32_t>(number_option(options, "step", 0));
  args.random.stream = static_cast<RandomStream>(number_option(options, "stream", 8));
  args.random.first_row = static_cast<int64_t>(number_option(options, "firstRow", 0));
  return args;
}

void quantize(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { quantize_nvfp4_cpu(quantize_args(info), ops_cpu(info)); });
}

// Without `out`, whose type the caller knows.
DequantizeArgs dequantize_args(const Napi::CallbackInfo& info) {
  return {nullptr,
          array_data<uint8_t>(info[1]),
          array_data<uint8_t>(info[2]),
          integer(info[3]),
          integer(info[4]),
          static_cast<float>(number_option(options_of(info), "globalScale", 1))};
}

void dequantize(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    DequantizeArgs args = dequantize_args(info);
    args.out = array_data<float>(info[0]);
    dequantize_nvfp4_cpu(args, ops_cpu(info));
  });
}

#if defined(QN_WITH_CUDA)
// Where a kernel notes the first value that is not finite.
class FirstBad {
 public:
  FirstBad() : buffer_(on_device(&kNone, sizeof(kNone))) {}
  uint64_t* get() const { return buffer_.as<uint64_t>(); }
  void refuse(int64_t K) const {
    uint64_t first = 0;
    buffer_.download(&first);
    if (first == kNone) return;
    fail(Code::kNonFiniteWeight, "the value at row %lld, column %lld is not finite, which NVFP4 cannot hold",
         static_cast<long long>(first) / static_cast<long long>(K),
         static_cast<long long>(first) % static_cast<long long>(K));
  }

 private:
  static constexpr uint64_t kNone = UINT64_MAX;
  CudaBuffer buffer_;
};

CudaBuffer values_on_device(const Napi::Value& value) {
  const auto bytes = static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength());
  return is_bf16(value) ? on_device(array_data<uint16_t>(value), bytes) : on_device(array_data<float>(value), bytes);
}

void quantize_cuda(const Napi::CallbackInfo& info) {
  QuantizeArgs args = quantize_args(info);
  const CudaBuffer codes(args.N * args.K / 2), scales(args.N * args.K / kBlockSize), x = values_on_device(info[2]);
  const FirstBad bad;
  uint8_t *host_codes = args.codes, *host_scales = args.scales;
  args.codes = codes.as<uint8_t>();
  args.scales = scales.as<uint8_t>();
  args.x = x.as<float>();
  if (is_bf16(info[2])) {
    quantize_nvfp4_bf16_cuda(x.as<uint16_t>(), args, bad.get(), nullptr);
  } else {
    quantize_nvfp4_cuda(args, bad.get(), nullptr);
  }
  bad.refuse(args.K);
  codes.download(host_codes);
  scales.download(host_scales);
}

Napi::Value amax_on_cuda(const Napi::CallbackInfo& info) {
  const int64_t K = integer(info[2]), count = integer(info[1]) * K;
  const CudaBuffer x = values_on_device(info[0]);
  const FirstBad bad;
  float amax = 0;
  const CudaBuffer largest = on_device(&amax, sizeof(amax));
  if (is_bf16(info[0])) {
    amax_bf16_cuda(largest.as<float>(), bad.get(), x.as<uint16_t>(), count, nullptr);
  } else {
    amax_cuda(largest.as<float>(), bad.get(), x.as<float>(), count, nullptr);
  }
  bad.refuse(K);
  largest.download(&amax);
  return Napi::Number::New(info.Env(), amax);
}

void dequantize_cuda(const Napi::CallbackInfo& info) {
  const bool bf16 = is_bf16(info[0]);
  DequantizeArgs args = dequantize_args(info);
  const int64_t count = args.N * args.K;
  const CudaBuffer codes = on_device(args.codes, count / 2), scales = on_device(args.scales, count / kBlockSize);
  const CudaBuffer values(count * (bf16 ? 2 : 4));
  args.codes = codes.as<uint8_t>();
  args.scales = scales.as<uint8_t>();
  args.out = values.as<float>();
  if (bf16) {
    dequantize_nvfp4_bf16_cuda(values.as<uint16_t>(), args, nullptr);
  } else {
    dequantize_nvfp4_cuda(args, nullptr);
  }
  values.download(bf16 ? static_cast<void*>(array_data<uint16_t>(info[0])) : array_data<float>(info[0]));
}

Napi::Value codec_time(const Napi::CallbackInfo& info) {
  const std::string op = info[0].ToString().Utf8Value();
  const Napi::Value dims = info[1];
  const int64_t N = option(dims, "N"), K = option(dims, "K"), count = N * K;
  const int64_t tensors = std::max<int64_t>(1, option(dims, "ringBytes") / (2 * count));
  const CudaBuffer codes = random_bytes(tensors * count / 2, 0, 256);
  const CudaBuffer scales = random_bytes(tensors * count / kBlockSize, 0x28, 0x15);
  const CudaBuffer x = random_bf16(tensors * count);
  const float zero = 0;
  const CudaBuffer largest = on_device(&zero, sizeof(zero));
  const FirstBad bad;
  return Napi::Number::New(info.Env(),
                           cuda_graph_microseconds(tensors, integer(info[2]), [&](int64_t i, CudaStream stream) {
                             uint8_t *codes_i = codes.as<uint8_t>() + i * count / 2,
                                     *scales_i = scales.as<uint8_t>() + i * count / kBlockSize;
                             uint16_t* x_i = x.as<uint16_t>() + i * count;
                             if (op == "dequantize") {
                               dequantize_nvfp4_bf16_cuda(x_i, {nullptr, codes_i, scales_i, N, K, 0.5f}, stream);
                             } else if (op == "quantize") {
                               QuantizeArgs args{};
                               args.codes = codes_i;
                               args.scales = scales_i;
                               args.N = N;
                               args.K = K;
                               args.global_scale = 0x1p-11f;
                               quantize_nvfp4_bf16_cuda(x_i, args, bad.get(), stream);
                             } else {
                               amax_bf16_cuda(largest.as<float>(), bad.get(), x_i, count, stream);
                             }
                           }));
}
#endif

Napi::Value probe(const Napi::CallbackInfo& info) {
  const CudaProbe probe = probe_cuda();
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("built", Napi::Boolean::New(info.Env(), probe.built));
  out.Set("devices", Napi::Number::New(info.Env(), probe.devices));
  out.Set("reason", Napi::String::New(info.Env(), probe.reason));
  return out;
}

Napi::Value amax(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const float largest = amax_cpu(array_data<float>(info[0]), integer(info[1]), integer(info[2]), ops_cpu(info));
    return Napi::Number::New(info.Env(), largest);
  });
}

Napi::Value global_scale(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), two_level_global_scale(number(info[0])));
  });
}

void to_blocked(const Napi::CallbackInfo& info) {
  to_blocked_scales(array_data<uint8_t>(info[0]), array_data<uint8_t>(info[1]), integer(info[2]), integer(info[3]));
}

void from_blocked(const Napi::CallbackInfo& info) {
  from_blocked_scales(array_data<uint8_t>(info[0]), array_data<uint8_t>(info[1]), integer(info[2]), integer(info[3]));
}

// out[i] = convert(in[i]) over typed arrays of the same length.
template <typename Out, typename In, Out (*convert)(In)>
void map_elements(const Napi::CallbackInfo& info) {
  Out* out = array_data<Out>(info[0]);
  const In* in = array_data<In>(info[1]);
  const size_t count = info[1].As<Napi::TypedArray>().ElementLength();
  for (size_t i = 0; i < count; ++i) out[i] = convert(in[i]);
}

uint8_t e2m1_code(float value) { return static_cast<uint8_t>(f32_to_e2m1(value)); }
float e2m1_value(uint8_t code) { return e2m1_to_f32(code); }
uint8_t e4m3_code(float value) { return f32_to_e4m3(value); }
uint8_t e4m3_up_code(float value) { return f32_to_e4m3_up(value); }
float e4m3_value(uint8_t code) { return e4m3_to_f32(code); }

// philox4x32(c0, c1, c2, c3, key: bigint) → the four words
Napi::Value philox(const Napi::CallbackInfo& info) {
  bool lossless = false;
  const auto word = [&](size_t i) { return info[i].As<Napi::Number>().Uint32Value(); };
  const PhiloxWords words =
      philox4x32(word(0), word(1), word(2), word(3), info[4].As<Napi::BigInt>().Uint64Value(&lossless));
  auto out = Napi::Uint32Array::New(info.Env(), 4);
  for (size_t i = 0; i < 4; ++i) out[i] = words.w[i];
  return out;
}

}  // namespace

void register_nvfp4_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("quantizeNvfp4", Napi::Function::New(env, quantize));
  ops.Set("dequantizeNvfp4", Napi::Function::New(env, dequantize));
  ops.Set("quantizeNvfp4Cuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(quantize_cuda)>));
  ops.Set("dequantizeNvfp4Cuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(dequantize_cuda)>));
  ops.Set("amaxCuda", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(amax_on_cuda)>));
  ops.Set("nvfp4CudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(codec_time)>));
  ops.Set("probeCuda", Napi::Function::New(env, probe));
  ops.Set("amax", Napi::Function::New(env, amax));
  ops.Set("twoLevelGlobalScale", Napi::Function::New(env, global_scale));
  ops.Set("toBlockedScales", Napi::Function::New(env, to_blocked));
  ops.Set("fromBlockedScales", Napi::Function::New(env, from_blocked));
  ops.Set("encodeE2m1", Napi::Function::New(env, map_elements<uint8_t, float, e2m1_code>));
  ops.Set("decodeE2m1", Napi::Function::New(env, map_elements<float, uint8_t, e2m1_value>));
  ops.Set("encodeE4m3", Napi::Function::New(env, map_elements<uint8_t, float, e4m3_code>));
  ops.Set("encodeE4m3Up", Napi::Function::New(env, map_elements<uint8_t, float, e4m3_up_code>));
  ops.Set("decodeE4m3", Napi::Function::New(env, map_elements<float, uint8_t, e4m3_value>));
  ops.Set("philox4x32", Napi::Function::New(env, philox));
}

}  // namespace qn
