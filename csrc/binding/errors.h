// Turns C++ exceptions into JavaScript errors with a `code`; lib/errors.ts rewraps them with the caller's stack.
#pragma once

#include <napi.h>

#include "core/status.h"

namespace qn {

inline Napi::Error to_js_error(Napi::Env env, const char* code, const char* message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

inline Napi::Error to_js_error(Napi::Env env, const Error& cause) {
  Napi::Error error = to_js_error(env, code_name(cause.code()), cause.what());
  if (!cause.key().empty()) error.Set("key", Napi::String::New(env, cause.key()));
  if (cause.step() > 0) error.Set("step", Napi::Number::New(env, static_cast<double>(cause.step())));
  return error;
}

// Runs `body` so that nothing but Napi::Error leaves it.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& error) {
    throw to_js_error(env, error);
  } catch (const std::bad_alloc&) {
    throw to_js_error(env, code_name(Code::kOutOfMemory), "out of memory");
  } catch (const std::exception& error) {
    throw to_js_error(env, code_name(Code::kInternal), error.what());
  }
}

}  // namespace qn
