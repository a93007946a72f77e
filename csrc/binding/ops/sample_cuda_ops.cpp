// Token sampling on device 0, for test/gpu and benchmarks/ops.
//   sampleTokenCuda(logits, V, seen | null, position, options, { blocks?, slots? })
//     -> { id, logprob, badId, badValue, position, nextId, top: [{ id, logprob }] }; `seen` u8[V] gets the new id
//   markSeenCuda(seen, ids)
//   sampleTokenCudaTime(logits, V, options, { blocks? }, replays) -> microseconds a launch in a CUDA graph
// `options` are those of sampleToken; `position` is that of the draw.
#include <algorithm>
#include <vector>

#include "binding/ops/ops.h"
#include "binding/ops/sample_args.h"
#include "core/cuda_device.h"
#include "core/cuda_graph_timer.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

constexpr int64_t kTimedLaunches = 64;

int64_t knob(const Napi::Value& object, const char* name, int64_t missing) {
  const Napi::Value value = object.IsObject() ? object.As<Napi::Object>().Get(name) : object;
  return value.IsNumber() ? integer(value) : missing;
}

// Everything that a launch reads and writes, on the device.
struct DeviceSample {
  CudaBuffer logits, seen, position, next_id, results, top, scratch;
  SampleCuda args = {};

  DeviceSample(const float* host_logits, const uint8_t* host_seen, int64_t V, int64_t draw_position,
               const SampleOptions& options, const Napi::Value& knobs) {
    const auto slots = knob(knobs, "slots", 1);
    logits = uploaded(host_logits, 4 * V);
    if (host_seen) seen = uploaded(host_seen, V);
    const auto before = static_cast<int32_t>(draw_position - 1);
    position = uploaded(&before, 4);
    next_id = CudaBuffer(4);
    results = CudaBuffer(slots * int64_t{sizeof(SampleResult)});
    top = CudaBuffer(slots * options.top_logprobs * int64_t{sizeof(TokenLogprob)});
    scratch = CudaBuffer(sample_scratch_bytes(V));
    args.logits = logits.as<float>();
    args.V = V;
    args.position = position.as<int32_t>();
    args.options = options;
    args.seen = seen.as<uint8_t>();
    args.next_id = next_id.as<int32_t>();
    args.results = results.as<SampleResult>();
    args.top = top.as<TokenLogprob>();
    args.slots = static_cast<int32_t>(slots);
    args.scratch = scratch.as<void>();
    args.blocks = static_cast<int32_t>(knob(knobs, "blocks", 0));
    if (args.blocks == 0) args.blocks = sample_blocks_cuda();
  }

  static CudaBuffer uploaded(const void* from, int64_t bytes) {
    CudaBuffer buffer(bytes);
    buffer.upload(from);
    return buffer;
  }

  template <typename T>
  static std::vector<T> downloaded(const CudaBuffer& buffer) {
    std::vector<T> values(static_cast<size_t>(buffer.bytes()) / sizeof(T));
    if (!values.empty()) buffer.download(values.data());
    return values;
  }
};

Napi::Value sample_cuda_op(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    const int64_t V = integer(info[1]), position = integer(info[3]);
    uint8_t* seen = array_data<uint8_t>(info[2]);
    const SampleOptions options = sample_options(info[4].As<Napi::Object>());
    const DeviceSample device(array_data<float>(info[0]), seen, V, position, options, info[5]);
    sample_cuda(device.args, nullptr);
    const auto slot = static_cast<size_t>(position % device.args.slots);
    const SampleResult result = DeviceSample::downloaded<SampleResult>(device.results)[slot];
    const std::vector<TokenLogprob> all = DeviceSample::downloaded<TokenLogprob>(device.top);
    if (seen) device.seen.download(seen);

    Napi::Object out = token_object(info.Env(), result.id, result.logprob);
    out.Set("badId", result.bad_id);
    out.Set("badValue", result.bad_value);
    out.Set("position", result.position);
    out.Set("nextId", DeviceSample::downloaded<int32_t>(device.next_id)[0]);
    Napi::Array top = Napi::Array::New(info.Env());
    const auto reported = static_cast<size_t>(std::min<int64_t>(options.top_logprobs, V));
    for (size_t i = 0; i < reported; ++i) {
      const TokenLogprob& token = all[slot * reported + i];
      top.Set(top.Length(), token_object(info.Env(), token.id, token.logprob));
    }
    out.Set("top", top);
    return out;
  });
}

Napi::Value mark_seen_cuda_op(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    uint8_t* seen = array_data<uint8_t>(info[0]);
    const auto count = static_cast<int64_t>(info[1].As<Napi::TypedArray>().ElementLength());
    const CudaBuffer at =
        DeviceSample::uploaded(seen, static_cast<int64_t>(info[0].As<Napi::TypedArray>().ByteLength()));
    const CudaBuffer ids = DeviceSample::uploaded(array_data<int32_t>(info[1]), 4 * count);
    mark_seen_cuda(at.as<uint8_t>(), ids.as<int32_t>(), count, nullptr);
    at.download(seen);
    return info.Env().Undefined();
  });
}

Napi::Value sample_cuda_time(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_cuda();
    const int64_t V = integer(info[1]);
    const std::vector<uint8_t> seen(static_cast<size_t>(V), 0);
    const DeviceSample device(array_data<float>(info[0]), seen.data(), V, 1, sample_options(info[2].As<Napi::Object>()),
                              info[3]);
    const double time = cuda_graph_microseconds(kTimedLaunches, integer(info[4]),
                                                [&](int64_t, CudaStream stream) { sample_cuda(device.args, stream); });
    return Napi::Number::New(info.Env(), time);
  });
}

#else
Napi::Value refuse(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    require_cuda();
    return info.Env().Undefined();
  });
}
Napi::Value sample_cuda_op(const Napi::CallbackInfo& info) { return refuse(info); }
Napi::Value mark_seen_cuda_op(const Napi::CallbackInfo& info) { return refuse(info); }
Napi::Value sample_cuda_time(const Napi::CallbackInfo& info) { return refuse(info); }
#endif

}  // namespace

void register_sample_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("sampleTokenCuda", Napi::Function::New(env, sample_cuda_op));
  ops.Set("markSeenCuda", Napi::Function::New(env, mark_seen_cuda_op));
  ops.Set("sampleTokenCudaTime", Napi::Function::New(env, sample_cuda_time));
}

}  // namespace qn
