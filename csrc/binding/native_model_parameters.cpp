// NativeModel: filling, describing, reading and writing parameters and their gradients.
#include <atomic>
#include <cstring>

#include "binding/held_bytes.h"
#include "binding/native_device.h"
#include "binding/native_model.h"
#include "binding/native_tensor.h"
#include "model/fold_residual.h"
#include "model/load.h"
#include "ops/linear.h"
#include "ops/quantize.h"

namespace qn {

namespace {

DType file_dtype_of(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  if (name == "u8") return DType::kU8;
  if (name == "e4m3") return DType::kE4M3;
  fail(Code::kInvalidArgument, "Expected a known element type but received '%s'", name.c_str());
}

FileRange range_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value);
  return {static_cast<int32_t>(int_of(object.Get("file"))), int_of(object.Get("offset")), int_of(object.Get("bytes")),
          file_dtype_of(string_of(object.Get("dtype")))};
}

TensorSource source_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value);
  TensorSource source;
  source.parameter = string_of(object.Get("parameter"));
  source.packed = object.Get("codes").IsObject();
  if (source.packed) {
    source.codes = range_of(object.Get("codes"));
    source.scales = range_of(object.Get("scales"));
    if (object.Get("globalScale").IsNumber())
      source.global_scale = object.Get("globalScale").As<Napi::Number>().FloatValue();
    source.two_level = bool_of(object.Get("twoLevel"));
    source.residual = object.Get("residualCodes").IsObject();
    if (source.residual) {
      source.residual_codes = range_of(object.Get("residualCodes"));
      source.residual_scales = range_of(object.Get("residualScales"));
    }
  } else {
    source.values = range_of(object.Get("values"));
  }
  return source;
}

ScaleRule scale_rule_of(const std::string& name) {
  if (name == "amax") return ScaleRule::kAmax;
  if (name == "four-over-six") return ScaleRule::kFourOverSix;
  if (name == "amax-up") return ScaleRule::kAmaxUp;
  fail(Code::kInvalidArgument, "Expected 'amax' | 'four-over-six' | 'amax-up' for scaleRule but received '%s'",
       name.c_str());
}

// The progress of a job, handed to JavaScript no more often than it listens.
class ProgressReport {
 public:
  ProgressReport(std::shared_ptr<JobHub> hub, Napi::Function callback)
      : hub_(std::move(hub)), callback_(Napi::Persistent(callback)) {}

  // On the lane.
  static void report(const std::shared_ptr<ProgressReport>& self, int64_t done, int64_t total) {
    self->done_ = done;
    self->total_ = total;
    if (self->posted_.exchange(true)) return;
    // The job owns the report until its own last message, which comes after this one.
    self->hub_->post([report = self.get()](Napi::Env env) {
      report->posted_ = false;
      report->callback_.Call(
          {Napi::Number::New(env, double(report->done_)), Napi::Number::New(env, double(report->total_))});
    });
  }

 private:
  std::shared_ptr<JobHub> hub_;
  Napi::FunctionReference callback_;
  std::atomic<int64_t> done_{0}, total_{0};
  std::atomic<bool> posted_{false};
};

const Buffer& part_of(const Parameter& parameter, const std::string& part) {
  const Buffer* buffer = part == "dense"            ? &parameter.dense
                         : part == "codes"          ? &parameter.codes
                         : part == "scales"         ? &parameter.scales
                         : part == "residualCodes"  ? &parameter.residual_codes
                         : part == "residualScales" ? &parameter.residual_scales
                                                    : nullptr;
  if (!buffer || !*buffer) {
    fail(Code::kInvalidArgument, "parameter %s has no %s", parameter.name.c_str(), part.c_str());
  }
  return *buffer;
}

Napi::Value filled(Napi::Env env, ModelState& state, const Model::Bytes& bytes) {
  if (!state.disposed) state.external.set(env, bytes.weights + bytes.scales);
  return env.Undefined();
}

void write_values(Model& model, Parameter& p, const std::vector<float>& values, const Cpu& cpu) {
  if (static_cast<int64_t>(values.size()) != p.count()) {
    fail(Code::kInvalidArgument, "Expected %lld values for %s but received %zu", (long long)p.count(), p.name.c_str(),
         values.size());
  }
  const float amax = amax_cpu(values.data(), p.rows, p.cols, cpu);  // refuses NaN and infinity
  if (p.storage == Storage::kNvfp4) {
    p.global_scale = p.two_level ? two_level_global_scale(amax) : 1.0f;
    // Zero and not freed: an optimizer may go on training it.
    for (const Buffer* buffer : {&p.residual_codes, &p.residual_scales}) {
      if (*buffer) std::memset(buffer->data(), 0, static_cast<size_t>(buffer->bytes()));
    }
    quantize_nvfp4_cpu({p.codes.as<uint8_t>(),
                        p.scales.as<uint8_t>(),
                        values.data(),
                        p.rows,
                        p.cols,
                        p.global_scale,
                        Rounding::kNearestEven,
                        ScaleRule::kAmax,
                        {}},
                       cpu);
  } else {
    for (int64_t i = 0; i < p.count(); ++i) {
      const float value = values[static_cast<size_t>(i)];
      if (p.storage == Storage::kF32) p.dense.as<float>()[i] = value;
      if (p.storage == Storage::kF16) p.dense.as<uint16_t>()[i] = f32_to_f16(value);
      if (p.storage == Storage::kBF16) p.dense.as<uint16_t>()[i] = f32_to_bf16(value);
    }
  }
  ++p.overwrites;
  model.mark_changed();
}

}  // namespace

Napi::Value NativeModel::JsLoad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    std::vector<std::string> files;
    const auto js_files = info[0].As<Napi::Array>();
    for (uint32_t i = 0; i < js_files.Length(); ++i) files.push_back(string_of(js_files.Get(i)));
    std::vector<TensorSource> sources;
    const auto js_sources = info[1].As<Napi::Array>();
    for (uint32_t i = 0; i < js_sources.Length(); ++i) sources.push_back(source_of(js_sources.Get(i)));
    const Napi::Object js = object_of(info[2]);
    LoadOptions options;
    options.quantize = bool_of(js.Get("quantize"));
    const std::string dense = string_of(js.Get("dense"));
    options.convert_dense = !dense.empty();
    if (options.convert_dense) options.dense = storage_of(dense);
    options.quantize_raw_embedding = bool_of(js.Get("quantizeRawEmbedding"));
    options.two_level = bool_of(js.Get("twoLevel"));
    options.scale_rule = scale_rule_of(string_of(js.Get("scaleRule")));
    std::shared_ptr<ProgressReport> report;
    if (info[3].IsFunction()) {
      report = std::make_shared<ProgressReport>(Environment::of(env).hub(), info[3].As<Napi::Function>());
    }
    // The lane gets a pointer; the conversion below owns the report, because it dies on the JS thread.
    std::weak_ptr<ProgressReport> listener = report;
    return run_job(
        env, order(info, 4),
        [state = alive(), files = std::move(files), sources = std::move(sources), options, listener](const Cpu& cpu) {
          load_parameters(
              state->model, files, sources, options,
              [&](int64_t done, int64_t total) {
                if (const auto report = listener.lock()) ProgressReport::report(report, done, total);
              },
              cpu);
          state->model.mark_changed();
          return state->model.bytes();
        },
        [report, state = state_](Napi::Env env, Model::Bytes& bytes) { return filled(env, *state, bytes); });
  });
}

Napi::Value NativeModel::JsInitialize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object js = object_of(info[0]);
    InitializeOptions options;
    options.seed = seed_of(js.Get("seed"));
    options.stddev = static_cast<float>(number_of(js.Get("stddev")));
    options.storage = storage_of(string_of(js.Get("storage")));
    options.two_level = bool_of(js.Get("twoLevel"));
    return run_job(
        info.Env(), order(info, 1),
        [state = alive(), options](const Cpu& cpu) {
          initialize_model(state->model, options, cpu);
          state->model.mark_changed();
          return state->model.bytes();
        },
        [state = state_](Napi::Env env, Model::Bytes& bytes) { return filled(env, *state, bytes); });
  });
}

Napi::Value NativeModel::JsDescribe(const Napi::CallbackInfo& info) {
  struct Description {
    ParameterSpec spec;
    bool trainable, two_level, residual;
    Storage storage;
    float global_scale;
  };
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0),
        [state = alive()](const Cpu&) {
          std::vector<Description> out;
          for (const Parameter& p : state->model.parameters()) {
            out.push_back({{p.name, p.rows, p.cols, p.is_vector},
                           p.trainable,
                           p.two_level,
                           p.shows_residual(),
                           p.storage,
                           p.global_scale});
          }
          return out;
        },
        [](Napi::Env env, std::vector<Description>& list) -> Napi::Value {
          Napi::Array out = Napi::Array::New(env, list.size());
          for (uint32_t i = 0; i < list.size(); ++i) {
            const Description& d = list[i];
            Napi::Object object = Napi::Object::New(env);
            object.Set("name", d.spec.name);
            object.Set("rows", double(d.spec.rows));
            object.Set("cols", double(d.spec.cols));
            object.Set("isVector", d.spec.is_vector);
            object.Set("trainable", d.trainable);
            object.Set("storage", storage_name(d.storage));
            object.Set("twoLevel", d.two_level);
            object.Set("globalScale", d.global_scale);
            object.Set("residual", d.residual);
            out.Set(i, object);
          }
          return out;
        });
  });
}

Napi::Value NativeModel::JsReadBytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const int64_t offset = int_of(info[2]), length = int_of(info[3]);
    if (offset < 0 || length < 0) fail(Code::kInvalidArgument, "Expected a range of bytes within the tensor");
    const auto array = Napi::Uint8Array::New(env, static_cast<size_t>(length));
    // Held by the reference and unknown to JavaScript until the promise settles, so its memory stays put.
    auto held = std::make_shared<Napi::Reference<Napi::Uint8Array>>(Napi::Persistent(array));
    uint8_t* out = const_cast<uint8_t*>(array.Data());
    return run_job(
        env, order(info, 4),
        [state = alive(), name = string_of(info[0]), part = string_of(info[1]), offset, length, out](const Cpu&) {
          const Buffer& buffer = part_of(state->parameter(name), part);
          if (offset + length > buffer.bytes()) {
            fail(Code::kInvalidArgument, "Expected a range within the %lld bytes of %s of %s",
                 (long long)buffer.bytes(), part.c_str(), name.c_str());
          }
          state->device()->copy_out(out, buffer.as<uint8_t>() + offset, length);
          return Nothing{};
        },
        [held](Napi::Env, Nothing&) -> Napi::Value { return held->Value(); });
  });
}

Napi::Value NativeModel::JsReadValues(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string name = string_of(info[0]);
    auto state = alive();
    const int64_t count = state->parameter(name).count();  // shapes never change, so the JS thread may read them
    return read_floats(info.Env(), order(info, 1), count, [state, name](float* out, const Cpu& cpu) {
      const Parameter& p = state->parameter(name);
      dequantize_rows_cpu(out, p.view(), 0, p.rows, cpu);
    });
  });
}

Napi::Value NativeModel::JsWriteValues(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 2),
        [state = alive(), name = string_of(info[0]), values = floats_of(info[1])](const Cpu& cpu) {
          write_values(state->model, state->parameter(name), values, cpu);
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeModel::JsFoldResidual(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const std::string name = string_of(info[0]);
    const bool two_level = bool_of(info[1]);
    auto state = alive();
    const int64_t count = state->parameter(name).count();
    const HeldBytes codes(env, count / 2), scales(env, count / kBlockSize);
    return run_job(
        env, order(info, 2),
        [state, name, two_level, codes = codes.data, scales = scales.data](const Cpu& cpu) {
          MemoryLedger& ledger = state->device()->ledger();
          return fold_residual(codes, scales, state->parameter(name), two_level, ledger, cpu);
        },
        [codes, scales](Napi::Env env, FoldedResidual& folded) -> Napi::Value {
          Napi::Object out = Napi::Object::New(env);
          out.Set("codes", codes.value());
          out.Set("scales", scales.value());
          out.Set("globalScale", folded.global_scale);
          out.Set("relativeRmsError", folded.relative_rms_error);
          return out;
        });
  });
}

Napi::Value NativeModel::JsReadGradient(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const std::string name = string_of(info[0]);
    auto state = alive();
    const int64_t count = state->parameter(name).count();
    const auto array = Napi::Float32Array::New(env, static_cast<size_t>(count));
    auto held = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(array));
    float* out = const_cast<float*>(array.Data());
    return run_job(
        env, order(info, 1),
        [state, name, count, out](const Cpu& cpu) {
          const Parameter& p = state->parameter(name);
          if (!state->gradients || !state->gradients->has(p)) return false;
          Device& device = state->model.device();
          const Buffer scratch(device.ledger(), MemoryKind::kScratch, state->gradients->is_f32() ? 0 : count * 4);
          const auto engine = make_engine(device, cpu);
          device.copy_out(out, state->gradients->rows(p, 0, p.rows, scratch.as<float>(), *engine), count * 4);
          return true;
        },
        [held](Napi::Env env, bool& has) -> Napi::Value { return has ? Napi::Value(held->Value()) : env.Null(); });
  });
}

Napi::Value NativeModel::JsZeroGradients(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0),
        [state = alive()](const Cpu&) {
          state->zero_gradients();
          return Nothing{};
        },
        to_undefined);
  });
}

}  // namespace qn
