#include "binding/native_optimizer.h"

#include <unordered_set>

#include "binding/native_device.h"
#include "binding/native_model.h"
#include "binding/train_args.h"
#include "train/train_step.h"

namespace qn {

WeightMode weight_mode_of(const std::string& name) {
  if (name == "nvfp4") return WeightMode::kNvfp4;
  if (name == "nvfp4+residual") return WeightMode::kNvfp4Residual;
  if (name == "bf16") return WeightMode::kBf16;
  if (name == "fp32") return WeightMode::kFp32;
  fail(Code::kInvalidArgument, "Expected 'nvfp4' | 'nvfp4+residual' | 'bf16' | 'fp32' for weights but received '%s'",
       name.c_str());
}

MomentFormat moment_format_of(const std::string& name) {
  if (name == "nvfp4") return MomentFormat::kNvfp4;
  if (name == "int8") return MomentFormat::kInt8;
  if (name == "bf16") return MomentFormat::kBf16;
  if (name == "fp32") return MomentFormat::kFp32;
  fail(Code::kInvalidArgument, "Expected 'nvfp4' | 'int8' | 'bf16' | 'fp32' for moments but received '%s'",
       name.c_str());
}

namespace {

AdamwOptions adamw_options_of(const Napi::Object& js) {
  AdamwOptions options;
  options.weights = weight_mode_of(string_of(js.Get("weights")));
  options.moments = moment_format_of(string_of(js.Get("moments")));
  options.residual_in_forward = bool_of(js.Get("residualInForward"));
  options.beta1 = number_of(js.Get("beta1"));
  options.beta2 = number_of(js.Get("beta2"));
  options.eps = number_of(js.Get("eps"));
  options.weight_decay = number_of(js.Get("weightDecay"));
  options.decay_vectors = bool_of(js.Get("decayNorms"));
  options.seed = seed_of(js.Get("seed"));
  options.step_chunk_rows = int_of(js.Get("stepChunkRows"));
  return options;
}

Napi::Object stats_object(Napi::Env env, const StepStats& stats, double lr) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("step", double(stats.step));
  out.Set("lr", lr);
  out.Set("gradNorm", stats.grad_norm);
  out.Set("clipScale", stats.clip_scale);
  out.Set("updateRms", stats.update_rms);
  out.Set("changedCodes", stats.flipped);
  out.Set("skipped", stats.skipped);
  return out;
}

// Whatever becomes of a step, the model knows afterwards how many were counted.
struct StepCount {
  ModelState& model;
  const PackedAdamW& optimizer;
  ~StepCount() { model.optimizer_steps = optimizer.step_count(); }
};

}  // namespace

Napi::Function NativeOptimizer::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceMethod<&NativeOptimizer::JsCreate>("create"), InstanceMethod<&NativeOptimizer::JsStep>("step"),
       InstanceMethod<&NativeOptimizer::JsTrainStep>("trainStep"),
       InstanceMethod<&NativeOptimizer::JsZeroGradients>("zeroGradients"),
       InstanceMethod<&NativeOptimizer::JsSave>("save"), InstanceMethod<&NativeOptimizer::JsLoad>("load"),
       InstanceMethod<&NativeOptimizer::JsReadMoments>("readMoments"),
       InstanceMethod<&NativeOptimizer::JsWriteMoments>("writeMoments"),
       InstanceMethod<&NativeOptimizer::JsStateBytes>("stateBytes"),
       InstanceMethod<&NativeOptimizer::JsDispose>("dispose")});
}

NativeOptimizer::NativeOptimizer(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
  guarded(info.Env(), [&] {
    state_ = std::make_shared<State>();
    state_->model = unwrap<NativeModel>(info[0]).alive();
    const Napi::Object js = object_of(info[1]);
    options_ = adamw_options_of(js);
    const auto names = js.Get("trainable").As<Napi::Array>();
    for (uint32_t i = 0; i < names.Length(); ++i) trainable_.push_back(string_of(names.Get(i)));
  });
}

std::shared_ptr<NativeOptimizer::State> NativeOptimizer::alive() const {
  if (disposed_) fail(Code::kDisposed, "the optimizer was disposed");
  state_->model->require_alive("the optimizer");
  return state_;
}

JobOrder NativeOptimizer::order(const Napi::CallbackInfo& info, size_t cancel_index) const {
  return Environment::of(info.Env()).order(state_->model->device(), NativeCancel::token_of(info[cancel_index]));
}

PackedAdamW& NativeOptimizer::made(State& state) {
  if (!state.optimizer) fail(Code::kDisposed, "the optimizer has no state: making it failed, see the first error");
  return *state.optimizer;
}

Napi::Value NativeOptimizer::JsCreate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0),
        [state = alive(), options = options_, names = trainable_](const Cpu& cpu) {
          Model& model = state->model->model;
          const std::unordered_set<std::string> trained(names.begin(), names.end());
          for (const Parameter& parameter : model.parameters()) {
            if (trained.count(parameter.name) > 0) refuse_frozen_form(parameter);
          }
          for (Parameter& parameter : model.parameters()) parameter.trainable = trained.count(parameter.name) > 0;
          state->optimizer = std::make_unique<PackedAdamW>(model, options, cpu);
          state->model->resumed_seed.reset();
          return Nothing{};
        },
        to_undefined);
  });
}

// ({ lr, maxGradNorm, skipAboveNorm, keepGradients }, cancel)
Napi::Value NativeOptimizer::JsStep(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Object js = object_of(info[0]);
    const StepArgs args = {number_of(js.Get("lr")), number_of(js.Get("maxGradNorm")),
                           number_of(js.Get("skipAboveNorm"))};
    const bool keep = bool_of(js.Get("keepGradients"));
    return run_job(
        info.Env(), order(info, 1),
        [state = alive(), args, keep](const Cpu& cpu) {
          PackedAdamW& optimizer = made(*state);
          GradientStore* gradients = state->model->gradients.get();
          if (!gradients || gradients->micro_batches() == 0) {
            fail(Code::kInvalidArgument, "there are no gradients to step with; await loss.backward() first");
          }
          const StepStats stats = optimizer.step(*gradients, args, cpu);
          state->model->optimizer_steps = optimizer.step_count();
          if (!keep) state->model->zero_gradients();
          return stats;
        },
        [lr = args.lr](Napi::Env env, StepStats& stats) -> Napi::Value { return stats_object(env, stats, lr); });
  });
}

// (batch, { lr, maxGradNorm, skipAboveLoss }, cancel)
Napi::Value NativeOptimizer::JsTrainStep(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const TokenBatch batch = token_batch_of(object_of(info[0]));
    if (batch.labels.empty()) fail(Code::kInvalidArgument, "Expected labels");
    const Napi::Object js = object_of(info[1]);
    const double lr = number_of(js.Get("lr")), max_grad_norm = number_of(js.Get("maxGradNorm"));
    const double skip_above_loss = number_of(js.Get("skipAboveLoss"));
    return run_job(
        info.Env(), order(info, 2),
        [state = alive(), batch, lr, max_grad_norm, skip_above_loss](const Cpu& cpu) {
          PackedAdamW& optimizer = made(*state);
          const StepCount count{*state->model, optimizer};
          return train_step(state->model->model, optimizer,
                            {batch.tape_args(), batch.labels.data(), batch.shifted, lr, max_grad_norm, skip_above_loss},
                            cpu);
        },
        [lr](Napi::Env env, TrainStepResult& result) -> Napi::Value {
          Napi::Object out = stats_object(env, result.stats, lr);
          out.Set("loss", result.loss.mean);
          out.Set("tokens", double(result.loss.tokens));
          return out;
        });
  });
}

Napi::Value NativeOptimizer::JsZeroGradients(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0),
        [state = alive()](const Cpu&) {
          state->model->optimizer_steps = made(*state).step_count();
          state->model->zero_gradients();
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeOptimizer::JsSave(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 1),
        [state = alive(), path = string_of(info[0])](const Cpu& cpu) {
          made(*state).save(path, cpu);
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeOptimizer::JsLoad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 1),
        [state = alive(), path = string_of(info[0])](const Cpu& cpu) {
          PackedAdamW& optimizer = made(*state);
          optimizer.load(path, cpu);
          // Sums of before the resume would continue with other random bits.
          state->model->optimizer_steps = optimizer.step_count();
          state->model->resumed_seed = optimizer.options().seed;
          state->model->zero_gradients();
          return double(optimizer.step_count());
        },
        [](Napi::Env env, double& step) -> Napi::Value { return Napi::Number::New(env, step); });
  });
}

// (parameter) → { moments, updates }
Napi::Value NativeOptimizer::JsReadMoments(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const std::string name = string_of(info[0]);
    auto state = alive();
    const int64_t count = state->model->parameter(name).count();  // shapes never change
    const auto array = Napi::Float32Array::New(env, static_cast<size_t>(2 * count));
    // Held by the reference and unknown to JavaScript until the promise settles, so its memory stays put.
    auto held = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(array));
    float* out = const_cast<float*>(array.Data());
    return run_job(
        env, order(info, 1),
        [state, name, out, count](const Cpu& cpu) {
          return made(*state).read_moments(state->model->parameter(name), out, out + count, cpu);
        },
        [held](Napi::Env env, int64_t& updates) -> Napi::Value {
          Napi::Object result = Napi::Object::New(env);
          result.Set("moments", held->Value());
          result.Set("updates", double(updates));
          return result;
        });
  });
}

// (parameter, m, v, updates)
Napi::Value NativeOptimizer::JsWriteMoments(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 4),
        [state = alive(), name = string_of(info[0]), m = floats_of(info[1]), v = floats_of(info[2]),
         updates = int_of(info[3])](const Cpu& cpu) {
          const Parameter& parameter = state->model->parameter(name);
          const auto count = static_cast<size_t>(parameter.count());
          if (m.size() != count || v.size() != count) {
            fail(Code::kInvalidArgument, "Expected %zu moments for %s", count, name.c_str());
          }
          PackedAdamW& optimizer = made(*state);
          optimizer.write_moments(parameter, m.data(), v.data(), updates, cpu);
          state->model->optimizer_steps = optimizer.step_count();
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeOptimizer::JsStateBytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0), [state = alive()](const Cpu&) { return double(made(*state).state_bytes()); },
        [](Napi::Env env, double& bytes) -> Napi::Value { return Napi::Number::New(env, bytes); });
  });
}

Napi::Value NativeOptimizer::JsDispose(const Napi::CallbackInfo& info) {
  disposed_ = true;
  return run_job(
      info.Env(), Environment::of(info.Env()).disposal(state_->model->device(), true),
      [state = state_](const Cpu&) {
        state->optimizer.reset();
        return Nothing{};
      },
      to_undefined);
}

}  // namespace qn
