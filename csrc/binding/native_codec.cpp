#include "binding/native_codec.h"

#include <cmath>
#include <vector>

#include "binding/environment.h"
#include "binding/held_bytes.h"
#include "binding/native_device.h"
#include "binding/native_tensor.h"
#include "binding/values.h"
#include "ops/quantize.h"

namespace qn {

namespace {

JobOrder order_of(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).order(unwrap<NativeDevice>(info[0]).device());
}

QuantizeArgs quantize_args(const Napi::CallbackInfo& info) {
  const Napi::Object options = object_of(info[4]);
  const std::string rule = string_of(options.Get("scaleRule"));
  QuantizeArgs args{};
  args.N = int_of(info[2]);
  args.K = int_of(info[3]);
  args.global_scale = static_cast<float>(number_of(options.Get("globalScale")));
  args.rounding = string_of(options.Get("rounding")) == "stochastic" ? Rounding::kStochastic : Rounding::kNearestEven;
  args.scale_rule = rule == "four-over-six" ? ScaleRule::kFourOverSix
                    : rule == "amax-up"     ? ScaleRule::kAmaxUp
                                            : ScaleRule::kAmax;
  args.random.seed = seed_of(options.Get("seed"));
  args.random.first_row = int_of(options.Get("firstRow"));
  return args;
}

#if defined(QN_WITH_CUDA)
template <typename T>
T* copy_of(const Buffer& buffer, const T* from, Device& device) {
  device.copy_in(buffer.data(), from, buffer.bytes());
  return buffer.as<T>();
}

// Host arrays in and out.
void quantize_on_gpu(const QuantizeArgs& host, Device& device) {
  const int64_t count = host.N * host.K;
  const auto scratch = [&](int64_t bytes) { return Buffer(device.ledger(), MemoryKind::kScratch, bytes); };
  const Buffer x = scratch(count * 4), codes = scratch(count / 2), scales = scratch(count / kBlockSize),
               bad = scratch(sizeof(uint64_t));
  uint64_t first_bad = UINT64_MAX;
  QuantizeArgs args = host;
  args.x = copy_of(x, host.x, device);
  args.codes = codes.as<uint8_t>();
  args.scales = scales.as<uint8_t>();
  quantize_nvfp4_cuda(args, copy_of(bad, &first_bad, device), device.cuda()->stream());
  device.copy_out(&first_bad, bad.data(), bad.bytes());
  if (first_bad != UINT64_MAX) {
    const auto block = static_cast<int64_t>(first_bad) / kBlockSize * kBlockSize;
    refuse_nonfinite_block(host.x + block, host.random.first_row + block / host.K, block % host.K);
  }
  device.copy_out(host.codes, codes.data(), codes.bytes());
  device.copy_out(host.scales, scales.data(), scales.bytes());
}

void dequantize_on_gpu(const DequantizeArgs& host, Device& device) {
  const int64_t count = host.N * host.K;
  const auto scratch = [&](int64_t bytes) { return Buffer(device.ledger(), MemoryKind::kScratch, bytes); };
  const Buffer out = scratch(count * 4), codes = scratch(count / 2), scales = scratch(count / kBlockSize);
  DequantizeArgs args = host;
  args.out = out.as<float>();
  args.codes = copy_of(codes, host.codes, device);
  args.scales = copy_of(scales, host.scales, device);
  dequantize_nvfp4_cuda(args, device.cuda()->stream());
  device.copy_out(host.out, out.data(), out.bytes());
}
#else
// A device without CUDA code is the CPU.
void quantize_on_gpu(const QuantizeArgs&, Device&) {}
void dequantize_on_gpu(const DequantizeArgs&, Device&) {}
#endif

using Swizzle = void (*)(uint8_t* out, const uint8_t* in, int64_t rows, int64_t cols);

Napi::Value swizzle(const Napi::CallbackInfo& info, int64_t out_bytes, int64_t in_bytes, Swizzle work) {
  auto in = bytes_of(info[1]);
  if (static_cast<int64_t>(in.size()) != in_bytes) fail(Code::kInvalidArgument, "the scales have another size");
  const HeldBytes out(info.Env(), out_bytes);
  const int64_t rows = int_of(info[2]), cols = int_of(info[3]);
  return run_job(
      info.Env(), order_of(info),
      [in = std::move(in), data = out.data, rows, cols, work](const Cpu&) {
        work(data, in.data(), rows, cols);
        return Nothing{};
      },
      [out](Napi::Env, Nothing&) { return out.value(); });
}

Napi::Value JsAmax(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int64_t rows = int_of(info[2]), cols = int_of(info[3]), first_row = int_of(info[4]);
    auto values = floats_of(info[1]);
    if (static_cast<int64_t>(values.size()) != rows * cols)
      fail(Code::kInvalidArgument, "the values have another size");
    return run_job(
        info.Env(), order_of(info),
        [values = std::move(values), rows, cols, first_row](const Cpu& cpu) {
          return amax_cpu(values.data(), rows, cols, cpu, first_row);
        },
        [](Napi::Env env, float& amax) -> Napi::Value { return Napi::Number::New(env, amax); });
  });
}

Napi::Value JsQuantizeNvfp4(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    QuantizeArgs args = quantize_args(info);
    const int64_t count = args.N * args.K;
    auto values = floats_of(info[1]);
    if (static_cast<int64_t>(values.size()) != count || args.K % kBlockSize != 0) {
      fail(Code::kInvalidArgument, "the values have another size");
    }
    const HeldBytes codes(info.Env(), count / 2), scales(info.Env(), count / kBlockSize);
    args.codes = codes.data;
    args.scales = scales.data;
    JobOrder order = order_of(info);
    return run_job(
        info.Env(), order,
        [args, values = std::move(values), device = order.device](const Cpu& cpu) mutable {
          args.x = values.data();
          device->cuda() ? quantize_on_gpu(args, *device) : quantize_nvfp4_cpu(args, cpu);
          return Nothing{};
        },
        [codes, scales](Napi::Env env, Nothing&) -> Napi::Value {
          Napi::Object out = Napi::Object::New(env);
          out.Set("codes", codes.value());
          out.Set("scales", scales.value());
          return out;
        });
  });
}

Napi::Value JsDequantizeNvfp4(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int64_t rows = int_of(info[3]), cols = int_of(info[4]), count = rows * cols;
    const auto global_scale = static_cast<float>(number_of(info[5]));
    auto codes = bytes_of(info[1]), scales = bytes_of(info[2]);
    if (cols % kBlockSize != 0 || static_cast<int64_t>(codes.size()) != count / 2 ||
        static_cast<int64_t>(scales.size()) != count / kBlockSize) {
      fail(Code::kInvalidArgument, "the codes or scales have another size");
    }
    JobOrder order = order_of(info);
    return read_floats(info.Env(), order, count,
                       [codes = std::move(codes), scales = std::move(scales), rows, cols, global_scale,
                        device = order.device](float* out, const Cpu& cpu) {
                         const DequantizeArgs args{out, codes.data(), scales.data(), rows, cols, global_scale};
                         const bool on_gpu = device->cuda() && std::abs(global_scale) < 0x1p120f;  // its kernel's limit
                         on_gpu ? dequantize_on_gpu(args, *device) : dequantize_nvfp4_cpu(args, cpu);
                       });
  });
}

Napi::Value JsToBlockedScales(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int64_t rows = int_of(info[2]), cols = int_of(info[3]);
    return swizzle(info, blocked_scales_bytes(rows, cols), rows * cols, to_blocked_scales);
  });
}

Napi::Value JsFromBlockedScales(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int64_t rows = int_of(info[2]), cols = int_of(info[3]);
    return swizzle(info, rows * cols, blocked_scales_bytes(rows, cols), from_blocked_scales);
  });
}

Napi::Value JsTwoLevelGlobalScale(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), two_level_global_scale(static_cast<float>(number_of(info[0]))));
  });
}

}  // namespace

void register_codec(Napi::Env env, Napi::Object exports) {
  exports.Set("amax", Napi::Function::New(env, JsAmax, "amax"));
  exports.Set("twoLevelGlobalScale", Napi::Function::New(env, JsTwoLevelGlobalScale, "twoLevelGlobalScale"));
  exports.Set("quantizeNvfp4", Napi::Function::New(env, JsQuantizeNvfp4, "quantizeNvfp4"));
  exports.Set("dequantizeNvfp4", Napi::Function::New(env, JsDequantizeNvfp4, "dequantizeNvfp4"));
  exports.Set("toBlockedScales", Napi::Function::New(env, JsToBlockedScales, "toBlockedScales"));
  exports.Set("fromBlockedScales", Napi::Function::New(env, JsFromBlockedScales, "fromBlockedScales"));
}

}  // namespace qn
