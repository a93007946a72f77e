#include "binding/native_memory.h"

#include "binding/native_model.h"
#include "binding/native_optimizer.h"
#include "binding/train_args.h"
#include "core/gpu_memory.h"
#include "train/memory_estimate.h"

namespace qn {

Napi::Value JsEstimateMemory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object js = object_of(info[1]);
    MemoryPlanArgs args;
    args.training = bool_of(js.Get("training"));
    args.cuda = bool_of(js.Get("cuda"));
    args.B = int_of(js.Get("batch"));
    args.T = int_of(js.Get("tokens"));
    args.threads = static_cast<int>(int_of(js.Get("threads")));
    const std::string weights = string_of(js.Get("weights"));
    args.weights = weights == "bnb4" ? Storage::kBnb4 : storage_of(weights);
    args.optimizer.weights = weight_mode_of(string_of(js.Get("optimizerWeights")));
    args.optimizer.moments = moment_format_of(string_of(js.Get("moments")));
    args.optimizer.step_chunk_rows = int_of(js.Get("stepChunkRows"));
    const auto frozen = js.Get("frozen").As<Napi::Array>();
    for (uint32_t i = 0; i < frozen.Length(); ++i) args.frozen.push_back(string_of(frozen.Get(i)));
    const std::string gradients = string_of(js.Get("gradients"));
    args.keep_gradients = !gradients.empty();
    if (args.keep_gradients) args.gradients = gradient_format_of(gradients);
    args.recompute = recompute_of(string_of(js.Get("recompute")));
    args.cache_tokens = int_of(js.Get("cacheTokens"));
    args.cache_dtype = storage_of(string_of(js.Get("cacheDtype"))) == Storage::kF32 ? DType::kF32 : DType::kF16;

    const MemoryBytes bytes = estimate_memory(config_of(info[0]), args);
    Napi::Object out = Napi::Object::New(info.Env());
    int64_t total = 0;
    for (int kind = 0; kind < kMemoryKinds; ++kind) {
      total += bytes[static_cast<size_t>(kind)];
      out.Set(memory_kind_name(static_cast<MemoryKind>(kind)), double(bytes[static_cast<size_t>(kind)]));
    }
    out.Set("total", double(total));
    return Napi::Value(out);
  });
}

namespace {

Napi::Value to_js(Napi::Env env, const GpuMemoryReading& reading) {
  const NvmlReading& memory = reading.memory;
  Napi::Object out = Napi::Object::New(env);
  out.Set("unified", reading.unified);
  out.Set("reason", memory.reason);
  if (memory.gpu) {
    out.Set("free", double(memory.gpu->free));
    out.Set("total", double(memory.gpu->total));
  }
  if (memory.processes) {
    Napi::Array list = Napi::Array::New(env, memory.processes->size());
    for (uint32_t i = 0; i < list.Length(); ++i) {
      Napi::Object process = Napi::Object::New(env);
      process.Set("pid", double((*memory.processes)[i].pid));
      process.Set("bytes", double((*memory.processes)[i].bytes));
      list.Set(i, process);
    }
    out.Set("processes", list);
  }
  return out;
}

}  // namespace

Napi::Value JsGpuMemory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int index = static_cast<int>(int_of(info[0]));
    const bool open_context = bool_of(info[1]);
    Environment& environment = Environment::of(info.Env());
    return run_job(
        info.Env(), environment.order(environment.observer()),
        [=](const Cpu&) { return read_gpu_memory(index, open_context); },
        [](Napi::Env env, GpuMemoryReading& reading) { return to_js(env, reading); });
  });
}

}  // namespace qn
