// NVFP4 ops: quantizeNvfp4(codes, scales, x, N, K, { globalScale, rounding, scaleRule, seed, parameter, step, stream,
// firstRow }), dequantizeNvfp4(out, codes, scales, N, K, { globalScale }), amax(x, N, K), twoLevelGlobalScale(amax),
// toBlockedScales(blocked, scales, rows, cols), fromBlockedScales(scales, blocked, rows, cols), and the scalar codecs.
// quantizeNvfp4Cuda and dequantizeNvfp4Cuda take the same arguments, the latter a Uint16Array too (bf16), and copy them
// to device 0 and back.
#include <string>

#include "binding/ops/ops.h"
#include "core/cuda_device.h"
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

QuantizeArgs quantize_args(const Napi::CallbackInfo& info) {
  const Napi::Object options = options_of(info);
  QuantizeArgs args{};
  args.codes = array_data<uint8_t>(info[0]);
  args.scales = array_data<uint8_t>(info[1]);
  args.x = array_data<float>(info[2]);
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
CudaBuffer on_device(const void* data, int64_t bytes) {
  CudaBuffer buffer(bytes);
  buffer.upload(data);
  return buffer;
}

void run_quantize_cuda(QuantizeArgs args) {
  const int64_t count = args.N * args.K;
  CudaBuffer codes(count / 2), scales(count / kBlockSize);
  const CudaBuffer x = on_device(args.x, count * 4);
  uint64_t first_bad = UINT64_MAX;
  const CudaBuffer bad = on_device(&first_bad, sizeof(first_bad));
  uint8_t *host_codes = args.codes, *host_scales = args.scales;
  args.codes = codes.as<uint8_t>();
  args.scales = scales.as<uint8_t>();
  args.x = x.as<float>();
  quantize_nvfp4_cuda(args, bad.as<uint64_t>(), nullptr);
  bad.download(&first_bad);
  if (first_bad != UINT64_MAX) {
    fail(Code::kNonFiniteWeight, "the value at row %lld, column %lld is not finite, which NVFP4 cannot hold",
         static_cast<long long>(first_bad) / static_cast<long long>(args.K),
         static_cast<long long>(first_bad) % static_cast<long long>(args.K));
  }
  codes.download(host_codes);
  scales.download(host_scales);
}

// `out` is f32 or, when `bf16`, bf16.
void run_dequantize_cuda(DequantizeArgs args, void* out, bool bf16) {
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
  values.download(out);
}
#else
// Without CUDA code require_cuda() has thrown before these.
void run_quantize_cuda(const QuantizeArgs&) {}
void run_dequantize_cuda(const DequantizeArgs&, void*, bool) {}
#endif

void quantize_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    run_quantize_cuda(quantize_args(info));
  });
}

void dequantize_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    const bool bf16 = info[0].As<Napi::TypedArray>().TypedArrayType() == napi_uint16_array;
    DequantizeArgs args = dequantize_args(info);
    run_dequantize_cuda(args, bf16 ? static_cast<void*>(array_data<uint16_t>(info[0])) : array_data<float>(info[0]),
                        bf16);
  });
}

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
  ops.Set("quantizeNvfp4Cuda", Napi::Function::New(env, quantize_cuda));
  ops.Set("dequantizeNvfp4Cuda", Napi::Function::New(env, dequantize_cuda));
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
