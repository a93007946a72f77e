// Device and Cancel: where jobs run, and what stops them.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "binding/values.h"

namespace qn {

class NativeCancel : public Napi::ObjectWrap<NativeCancel> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e001};
  static constexpr const char* kName = "Cancel";
  static Napi::Function define(Napi::Env env);
  explicit NativeCancel(const Napi::CallbackInfo& info);

  // The token of an argument; undefined gives a fresh one.
  static std::shared_ptr<CancelToken> token_of(const Napi::Value& value);

 private:
  void JsCancel(const Napi::CallbackInfo&) { token_->cancel(); }
  std::shared_ptr<CancelToken> token_ = std::make_shared<CancelToken>();
};

class NativeDevice : public Napi::ObjectWrap<NativeDevice> {
 public:
  static constexpr napi_type_tag kTag = {0x9b1c5b0c54d74c71, 0x8f2be1d1a7a3e002};
  static constexpr const char* kName = "Device";
  static Napi::Function define(Napi::Env env);
  // (name, threads, isa)
  explicit NativeDevice(const Napi::CallbackInfo& info);

  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  Napi::Value JsName(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), name_); }
  Napi::Value JsThreads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), device_->threads()); }
  Napi::Value JsIsa(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), isa_name(device_->isa())); }
  Napi::Value JsMemory(const Napi::CallbackInfo& info);
  void JsResetPeak(const Napi::CallbackInfo&) {
    if (device_->ready()) device_->ledger().reset_peak();
  }

  std::string name_;
  std::shared_ptr<Device> device_;
};

}  // namespace qn
