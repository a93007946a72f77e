#include "binding/native_device.h"

namespace qn {

Napi::Function NativeCancel::define(Napi::Env env) {
  return DefineClass(env, kName, {InstanceMethod<&NativeCancel::JsCancel>("cancel")});
}

NativeCancel::NativeCancel(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

std::shared_ptr<CancelToken> NativeCancel::token_of(const Napi::Value& value) {
  if (value.IsUndefined()) return std::make_shared<CancelToken>();
  return unwrap<NativeCancel>(value).token_;
}

Napi::Function NativeDevice::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&NativeDevice::JsName>("name"), InstanceAccessor<&NativeDevice::JsThreads>("threads"),
       InstanceAccessor<&NativeDevice::JsIsa>("isa"), InstanceMethod<&NativeDevice::JsMemory>("memory"),
       InstanceMethod<&NativeDevice::JsResetPeak>("resetPeak")});
}

NativeDevice::NativeDevice(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  info.This().As<Napi::Object>().TypeTag(&kTag);
  guarded(info.Env(), [&] {
    name_ = string_of(info[0]);
    device_ = Environment::of(info.Env()).device(name_, static_cast<int>(int_of(info[1])), string_of(info[2]));
  });
}

Napi::Value NativeDevice::JsMemory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    MemoryLedger none;
    const MemoryLedger& ledger = device_->ready() ? device_->ledger() : none;
    Napi::Object out = Napi::Object::New(info.Env());
    for (int kind = 0; kind < kMemoryKinds; ++kind) {
      const auto memory_kind = static_cast<MemoryKind>(kind);
      out.Set(memory_kind_name(memory_kind), static_cast<double>(ledger.bytes(memory_kind)));
    }
    out.Set("total", static_cast<double>(ledger.total()));
    out.Set("peak", static_cast<double>(ledger.peak()));
    if (device_->ready() && device_->cuda()) {
      const CudaContext::Free gpu = device_->cuda()->free_memory();
      out.Set("gpuFree", static_cast<double>(gpu.free));
      out.Set("gpuTotal", static_cast<double>(gpu.total));
    }
    return Napi::Value(out);
  });
}

}  // namespace qn
