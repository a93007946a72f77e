// The one exception type of the core, and the stable codes it carries to JavaScript.
#pragma once

#include <stdexcept>
#include <string>

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
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

// printf-style throw: fail(Code::kIo, "cannot open %s: %s", path, strerror(errno)).
[[noreturn]] void fail(Code code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace qn
