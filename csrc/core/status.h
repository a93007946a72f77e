// The one exception type of the core, and the stable codes it carries to JavaScript.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace qn {

// Stable names: code_name() gives the string that becomes `error.code`; docs/errors.md lists each one.
enum class Code {
  kInvalidArgument,    // a precondition that lib/check.ts should have caught
  kUnsupported,        // valid, but this build or this device cannot do it
  kOutOfMemory,        // the message says bytes asked and what would shrink them
  kDisposed,           // the object was disposed
  kBusy,               // the object is in use by another call
  kAborted,            // a cancel token was set
  kCacheFull,          // the KV cache has no room for the tokens
  kNonFiniteLogits,    // NaN or infinity in logits
  kNonFiniteGradient,  // NaN or infinity in a gradient; names the tensor
  kNonFiniteWeight,    // NaN scale or weight in a loaded tensor
  kDegenerateOutput,   // generation repeats one id
  kIo,                 // a system call failed; the message has path and errno text
  kTruncated,          // a file ended before a payload did
  kStaleGradient,      // weights changed between a forward pass and its backward pass
  kStateMismatch,      // an optimizer state or cache file belongs to another model
  kCudaUnavailable,    // no driver, no device, or a build without CUDA
  kCudaFailure,        // a CUDA call failed
  kInternal,           // a bug of ours
};

const char* code_name(Code code);

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message, std::string key = "")
      : std::runtime_error(message), code_(code), key_(std::move(key)) {}
  Code code() const { return code_; }
  const std::string& key() const { return key_; }  // the tensor or module that it concerns, where one is known
  int64_t step() const { return step_; }           // number of the optimizer step that failed; 0: none
  void set_step(int64_t step) { step_ = step; }

 private:
  Code code_;
  std::string key_;
  int64_t step_ = 0;
};

// printf-style throw: fail(Code::kIo, "cannot open %s: %s", path, strerror(errno)).
[[noreturn]] void fail(Code code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The same about the tensor or module `key`.
[[noreturn]] void fail_at(const std::string& key, Code code, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// body(), whose errors say that they are of this optimizer step.
template <typename Body>
auto in_step(int64_t step, Body&& body) {
  try {
    return body();
  } catch (Error& error) {
    error.set_step(step);
    throw;
  }
}

}  // namespace qn
