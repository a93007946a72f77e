#include "binding/native_tensor.h"

namespace qn {

Napi::Function NativeTensor::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&NativeTensor::JsRows>("rows"), InstanceAccessor<&NativeTensor::JsCols>("cols"),
       InstanceMethod<&NativeTensor::JsRead>("read"), InstanceMethod<&NativeTensor::JsDispose>("dispose")});
}

NativeTensor::NativeTensor(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

void NativeTensor::Finalize(Napi::BasicEnv env) { external_.set(env, 0); }

Napi::Value NativeTensor::wrap(Napi::Env env, std::shared_ptr<Device> device, Buffer values, int64_t rows,
                               int64_t cols) {
  const Napi::Object object = Environment::of(env).tensor_class.New({});
  NativeTensor& self = *Unwrap(object);
  self.rows_ = rows;
  self.cols_ = cols;
  self.external_.set(env, values.bytes());
  self.device_ = device;
  self.content_ = std::make_shared<Content>(Content{std::move(device), std::move(values)});
  return object;
}

Napi::Value NativeTensor::JsRead(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!content_) fail(Code::kDisposed, "the tensor was disposed");
    const int64_t begin = int_of(info[0]), end = int_of(info[1]);
    if (begin < 0 || end < begin || end > rows_) {
      fail(Code::kInvalidArgument, "Expected rows within [0, %lld] but received %lld to %lld", (long long)rows_,
           (long long)begin, (long long)end);
    }
    const int64_t count = (end - begin) * cols_, first = begin * cols_;
    return read_floats(env, Environment::of(env).order(device_), count,
                       [content = content_, first, count](float* out, const Cpu&) {
                         content->device->copy_out(out, content->values.as<float>() + first, count * 4);
                       });
  });
}

Napi::Value NativeTensor::JsDispose(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    if (!device_) fail(Code::kInternal, "a tensor without a device");
    external_.set(env, 0);
    return run_job(
        env, Environment::of(env).disposal(device_), [content = std::move(content_)](const Cpu&) { return Nothing{}; },
        to_undefined);
  });
}

}  // namespace qn
