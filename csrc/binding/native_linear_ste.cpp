#include "binding/native_linear_ste.h"

#include "binding/native_device.h"
#include "binding/native_model.h"

namespace qn {

Napi::Function NativeLinearSte::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {InstanceMethod<&NativeLinearSte::JsBackward>("backward"),
                      InstanceMethod<&NativeLinearSte::JsDispose>("dispose")});
}

NativeLinearSte::NativeLinearSte(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

WeightView NativeLinearSte::Context::view() const {
  if (own) return own->view();
  Parameter& p = model->parameter(parameter);
  if (p.is_vector) fail(Code::kInvalidArgument, "Expected the name of a matrix but received '%s'", parameter.c_str());
  return p.view();
}

Napi::Value NativeLinearSte::JsForward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const std::shared_ptr<Device> device = unwrap<NativeDevice>(info[0]).device();
    const Napi::Object js = object_of(info[1]);
    auto context = std::make_shared<Context>();
    context->device = device;
    context->input = floats_of(js.Get("input"));
    context->N = int_of(js.Get("rows"));
    context->K = int_of(js.Get("cols"));
    context->T = int_of(js.Get("tokens"));
    std::vector<float> weight = floats_of(js.Get("weight"));
    if (weight.empty()) {
      context->model = unwrap<NativeModel>(js.Get("model")).alive();
      context->parameter = string_of(js.Get("parameter"));
    }
    const bool sizes_match = static_cast<int64_t>(context->input.size()) == context->T * context->K &&
                             (weight.empty() || static_cast<int64_t>(weight.size()) == context->N * context->K);
    if (!sizes_match) fail(Code::kInvalidArgument, "input and weight must have tokens x cols and rows x cols elements");
    const bool two_level = bool_of(js.Get("twoLevel"));
    const ScaleRule rule =
        string_of(js.Get("scaleRule")) == "four-over-six" ? ScaleRule::kFourOverSix : ScaleRule::kAmax;
    const auto y = Napi::Float32Array::New(env, static_cast<size_t>(context->T * context->N));
    auto held = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(y));
    float* out = const_cast<float*>(y.Data());
    return run_job(
        env, Environment::of(env).order(device, NativeCancel::token_of(info[2])),
        [context, weight = std::move(weight), two_level, rule, out](const Cpu& cpu) {
          if (!weight.empty()) {
            context->own.emplace(*context->device, weight.data(), context->N, context->K, two_level, rule, cpu);
          } else {
            context->version = context->model->model.version();
          }
          const WeightView view = context->view();
          if (view.rows != context->N || view.cols != context->K) {
            fail(Code::kInvalidArgument, "the shape of %s is not rows x cols", context->parameter.c_str());
          }
          linear_ste(*make_engine(*context->device, cpu), out, context->input.data(), view, context->T);
          return Nothing{};
        },
        [context, held](Napi::Env env, Nothing&) -> Napi::Value {
          const Napi::Object object = Environment::of(env).linear_ste_class.New({});
          NativeLinearSte& self = *Unwrap(object);
          self.context_ = context;
          self.device_ = context->device;
          Napi::Object result = Napi::Object::New(env);
          result.Set("y", held->Value());
          result.Set("context", object);
          return result;
        });
  });
}

Napi::Value NativeLinearSte::JsBackward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!context_) fail(Code::kDisposed, "the linearSte result was disposed");
    if (context_->model) context_->model->require_alive("the linearSte result");
    std::vector<float> dy = floats_of(info[0]);
    if (static_cast<int64_t>(dy.size()) != context_->T * context_->N) {
      fail(Code::kInvalidArgument, "dy must have tokens x rows elements");
    }
    const auto dx = Napi::Float32Array::New(env, static_cast<size_t>(context_->T * context_->K));
    const auto dw = Napi::Float32Array::New(env, static_cast<size_t>(context_->N * context_->K));
    auto held = std::make_shared<Napi::ObjectReference>(Napi::Persistent(Napi::Object::New(env)));
    held->Value().Set("dInput", dx);
    held->Value().Set("dWeight", dw);
    float* dx_out = const_cast<float*>(dx.Data());
    float* dw_out = const_cast<float*>(dw.Data());
    return run_job(
        env, Environment::of(env).order(device_, NativeCancel::token_of(info[1])),
        [context = context_, dy = std::move(dy), dx_out, dw_out](const Cpu& cpu) {
          if (context->model && context->model->model.version() != context->version) {
            fail(Code::kStaleGradient, "%s changed since linearSte; run it again", context->parameter.c_str());
          }
          linear_ste_backward(*make_engine(*context->device, cpu), dx_out, dw_out, dy.data(), context->input.data(),
                              context->view(), context->T);
          return Nothing{};
        },
        [held](Napi::Env, Nothing&) -> Napi::Value { return held->Value(); });
  });
}

Napi::Value NativeLinearSte::JsDispose(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (!device_) fail(Code::kInternal, "a context without a device");
    return run_job(
        info.Env(), Environment::of(info.Env()).disposal(device_),
        [context = std::move(context_)](const Cpu&) { return Nothing{}; }, to_undefined);
  });
}

}  // namespace qn
