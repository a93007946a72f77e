#include "binding/native_tape.h"

#include "binding/native_device.h"
#include "binding/train_args.h"
#include "train/memory_plan.h"
#include "train/tape_state.h"

namespace qn {

Napi::Function NativeTape::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceMethod<&NativeTape::JsBackward>("backward"), InstanceMethod<&NativeTape::JsDispose>("dispose")});
}

NativeTape::NativeTape(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

Napi::Value NativeTape::wrap(Napi::Env env, std::shared_ptr<ModelState> model, std::shared_ptr<Tape> tape) {
  const Napi::Object object = Environment::of(env).tape_class.New({});
  NativeTape& self = *Unwrap(object);
  self.model_ = std::move(model);
  self.tape_ = std::move(tape);
  self.external_.set(env, self.tape_->arena.capacity());
  return object;
}

Napi::Value NativeTape::JsBackward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (disposed_) fail(Code::kDisposed, "the loss was disposed");
    model_->require_alive("the loss");
    if (!tape_) fail(Code::kStaleGradient, "this forward pass was already used by a backward pass; run it again");
    std::vector<float> dlogits = floats_of(info[0]);
    const auto scale = static_cast<float>(number_of(info[1]));
    const GradientStore::Options options = gradient_options_of(object_of(info[2]));
    external_.set(env, 0);
    return run_job(
        env, Environment::of(env).order(model_->device(), NativeCancel::token_of(info[3])),
        [model = model_, tape = std::move(tape_), dlogits = std::move(dlogits), scale, options](const Cpu& cpu) {
          GradientStore& store = model->gradient_store(options);
          require_backward_memory(*tape, !dlogits.empty(), store);
          try {
            backward(*tape, dlogits.empty() ? nullptr : dlogits.data(), scale, store, cpu);
          } catch (const Error& error) {
            // These two are found before anything was added; after any other failure the sums are incomplete.
            if (error.code() != Code::kStaleGradient && error.code() != Code::kNonFiniteGradient) store.zero(0);
            throw;
          }
          return Nothing{};
        },
        to_undefined);
  });
}

Napi::Value NativeTape::JsDispose(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!model_) fail(Code::kInternal, "a tape without a model");
    disposed_ = true;
    external_.set(env, 0);
    return run_job(
        env, Environment::of(env).disposal(model_->device()),
        [model = model_, tape = std::move(tape_)](const Cpu&) { return Nothing{}; }, to_undefined);
  });
}

}  // namespace qn
