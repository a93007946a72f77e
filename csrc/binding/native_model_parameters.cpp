// NativeModel: filling, describing, reading and writing parameters and their gradients.
#include <algorithm>
#include <atomic>

#include "binding/held_bytes.h"
#include "binding/native_device.h"
#include "binding/native_model.h"
#include "binding/native_tensor.h"
#include "binding/tensor_source.h"
#include "model/engine.h"
#include "model/fold_residual.h"
#include "model/parameter_values.h"

namespace qn {

namespace {

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

// f32[rows, cols]; the store's rows are device memory.
void read_gradient(float* out, Device& device, const GradientStore& gradients, const Parameter& p, const Cpu& cpu) {
  constexpr int64_t kChunk = 8 << 20;  // elements
  const int64_t chunk = std::clamp<int64_t>(kChunk / p.cols, 1, p.rows);
  const Buffer scratch(device.ledger(), MemoryKind::kScratch, gradients.is_f32() ? 0 : chunk * p.cols * 4);
  const auto engine = make_engine(device, cpu);
  for (int64_t row = 0; row < p.rows; row += chunk) {
    const int64_t count = std::min(chunk, p.rows - row);
    const float* rows = gradients.rows(p, row, count, scratch.as<float>(), *engine);
    device.copy_out(out + row * p.cols, rows, count * p.cols * 4);
  }
}

}  // namespace

Napi::Value NativeModel::JsLoad(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    std::vector<std::string> files = strings_of(info[0]);
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
    options.in_place = bool_of(js.Get("inPlace"));
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
    Codebook codebook;
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
                           p.codebook,
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
            if (d.storage == Storage::kBnb4) object.Set("codebook", codebook_name(d.codebook));
            object.Set("twoLevel", d.two_level);
            object.Set("globalScale", d.global_scale);
            object.Set("residual", d.residual);
            out.Set(i, object);
          }
          return out;
        });
  });
}

// (parameter, part, offset, target)
Napi::Value NativeModel::JsReadBytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const int64_t offset = int_of(info[2]);
    const HeldBytes target(uint8_array_of(info[3]));
    return run_job(
        env, order(info, 4),
        [state = alive(), name = string_of(info[0]), part = string_of(info[1]), offset, out = target.data,
         length = target.bytes](const Cpu&) {
          const Buffer& buffer = part_of(state->parameter(name), part);
          if (offset < 0 || offset + length > buffer.bytes()) {
            fail(Code::kInvalidArgument, "Expected a range within the %lld bytes of %s of %s",
                 (long long)buffer.bytes(), part.c_str(), name.c_str());
          }
          state->device()->copy_out(out, buffer.as<uint8_t>() + offset, length);
          return Nothing{};
        },
        [target](Napi::Env env, Nothing&) -> Napi::Value { return env.Undefined(); });
  });
}

Napi::Value NativeModel::JsReadValues(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string name = string_of(info[0]);
    auto state = alive();
    const int64_t count = state->parameter(name).count();  // shapes never change, so the JS thread may read them
    return read_floats(info.Env(), order(info, 1), count, [state, name](float* out, const Cpu& cpu) {
      read_values(out, state->model, state->parameter(name), cpu);
    });
  });
}

Napi::Value NativeModel::JsWriteValues(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 2),
        [state = alive(), name = string_of(info[0]), values = floats_of(info[1])](const Cpu& cpu) {
          Parameter& p = state->parameter(name);
          if (static_cast<int64_t>(values.size()) != p.count()) {
            fail(Code::kInvalidArgument, "Expected %lld values for %s but received %zu", (long long)p.count(),
                 name.c_str(), values.size());
          }
          write_values(state->model, p, values.data(), cpu);
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
          return fold_residual(codes, scales, state->model, state->parameter(name), two_level, cpu);
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
        [state, name, out](const Cpu& cpu) {
          const Parameter& p = state->parameter(name);
          if (!state->gradients || !state->gradients->has(p)) return false;
          read_gradient(out, *state->device(), *state->gradients, p, cpu);
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
