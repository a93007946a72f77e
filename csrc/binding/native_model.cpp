#include "binding/native_model.h"

#include "binding/native_device.h"

namespace qn {

ModelConfig config_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value);
  ModelConfig config;
  config.H = int_of(object.Get("H"));
  config.L = int_of(object.Get("L"));
  config.Q = int_of(object.Get("Q"));
  config.KV = int_of(object.Get("KV"));
  config.D = int_of(object.Get("D"));
  config.F = int_of(object.Get("F"));
  config.V = int_of(object.Get("V"));
  config.rope_base = number_of(object.Get("ropeBase"));
  config.eps = static_cast<float>(number_of(object.Get("eps")));
  config.tied = bool_of(object.Get("tied"));
  const bool whole = config.H > 0 && config.L > 0 && config.Q > 0 && config.KV > 0 && config.D > 0 && config.F > 0 &&
                     config.V > 0 && config.V <= INT32_MAX;
  if (!whole || config.Q % config.KV != 0 || config.D % 2 != 0) {
    fail(Code::kInvalidArgument, "the configuration is not one of a Qwen3 decoder");
  }
  return config;
}

namespace {

Compute compute_of(const std::string& name) {
  if (name == "w4a16") return Compute::kW4A16;
  if (name == "w4a4") return Compute::kW4A4;
  fail(Code::kInvalidArgument, "Expected 'w4a16' | 'w4a4' for compute but received '%s'", name.c_str());
}

}  // namespace

Napi::Function NativeModel::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&NativeModel::JsParameterCount>("parameterCount"),
       InstanceMethod<&NativeModel::JsBytes>("bytes"), InstanceMethod<&NativeModel::JsDispose>("dispose"),
       InstanceMethod<&NativeModel::JsLoad>("load"), InstanceMethod<&NativeModel::JsInitialize>("initialize"),
       InstanceMethod<&NativeModel::JsDescribe>("describe"), InstanceMethod<&NativeModel::JsReadBytes>("readBytes"),
       InstanceMethod<&NativeModel::JsReadValues>("readValues"),
       InstanceMethod<&NativeModel::JsWriteValues>("writeValues"),
       InstanceMethod<&NativeModel::JsFoldResidual>("foldResidual"),
       InstanceMethod<&NativeModel::JsReadGradient>("readGradient"),
       InstanceMethod<&NativeModel::JsZeroGradients>("zeroGradients"),
       InstanceMethod<&NativeModel::JsForward>("forward"),
       InstanceMethod<&NativeModel::JsForwardCached>("forwardCached"), InstanceMethod<&NativeModel::JsRecord>("record"),
       InstanceMethod<&NativeModel::JsLoss>("loss"), InstanceMethod<&NativeModel::JsHiddenLoss>("hiddenLoss"),
       InstanceMethod<&NativeModel::JsGenerate>("generate")});
}

NativeModel::NativeModel(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
  guarded(info.Env(), [&] {
    state_ = std::make_shared<ModelState>(unwrap<NativeDevice>(info[0]).device(), config_of(info[1]),
                                          compute_of(string_of(info[2])));
  });
}

// A model that was never disposed: let the lane free it, behind the jobs that still use it, instead of the JS thread.
void NativeModel::Finalize(Napi::BasicEnv env) {
  if (!state_) return;
  state_->external.set(env, 0);
  Lane& lane = state_->device()->lane();
  lane.submit([state = std::move(state_)] {});
}

std::shared_ptr<ModelState> NativeModel::alive() const {
  if (state_->disposed) fail(Code::kDisposed, "the model was disposed");
  return state_;
}

JobOrder NativeModel::order(const Napi::CallbackInfo& info, size_t cancel_index) const {
  return Environment::of(info.Env()).order(state_->device(), NativeCancel::token_of(info[cancel_index]));
}

Napi::Value NativeModel::JsParameterCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(state_->model.parameter_count()));
}

Napi::Value NativeModel::JsBytes(const Napi::CallbackInfo& info) {
  struct Bytes {
    Model::Bytes own;
    int64_t gradients;
  };
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order(info, 0),
        [state = alive()](const Cpu&) {
          return Bytes{state->model.bytes(), state->gradients ? state->gradients->bytes() : 0};
        },
        [](Napi::Env env, Bytes& bytes) -> Napi::Value {
          Napi::Object out = Napi::Object::New(env);
          out.Set("weights", double(bytes.own.weights));
          out.Set("scales", double(bytes.own.scales));
          out.Set("gradients", double(bytes.gradients));
          return out;
        });
  });
}

Napi::Value NativeModel::JsDispose(const Napi::CallbackInfo& info) {
  const bool first = !state_->disposed;
  state_->disposed = true;
  state_->external.set(info.Env(), 0);
  return run_job(
      info.Env(), Environment::of(info.Env()).disposal(state_->device(), true),
      [state = state_, first](const Cpu&) {
        if (first) {
          state->gradients.reset();
          state->model.release();
        }
        return Nothing{};
      },
      to_undefined);
}

}  // namespace qn
