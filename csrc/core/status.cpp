#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace qn {

const char* code_name(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Code::kUnsupported:
      return "UNSUPPORTED";
    case Code::kOutOfMemory:
      return "OUT_OF_MEMORY";
    case Code::kDisposed:
      return "DISPOSED";
    case Code::kBusy:
      return "BUSY";
    case Code::kAborted:
      return "ABORTED";
    case Code::kCacheFull:
      return "CACHE_FULL";
    case Code::kNonFiniteLogits:
      return "NON_FINITE_LOGITS";
    case Code::kNonFiniteGradient:
      return "NON_FINITE_GRADIENT";
    case Code::kNonFiniteWeight:
      return "NON_FINITE_WEIGHT";
    case Code::kDegenerateOutput:
      return "DEGENERATE_OUTPUT";
    case Code::kIo:
      return "IO_FAILED";
    case Code::kTruncated:
      return "FILE_TRUNCATED";
    case Code::kStaleGradient:
      return "STALE_GRADIENT";
    case Code::kStateMismatch:
      return "STATE_MISMATCH";
    case Code::kCudaUnavailable:
      return "CUDA_UNAVAILABLE";
    case Code::kCudaFailure:
      return "CUDA_FAILED";
    case Code::kInternal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

namespace {

std::string formatted(const char* format, va_list arguments) {
  char message[1024];
  std::vsnprintf(message, sizeof message, format, arguments);
  return message;
}

}  // namespace

void fail(Code code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string message = formatted(format, arguments);
  va_end(arguments);
  throw Error(code, message);
}

void fail_at(const std::string& key, Code code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string message = formatted(format, arguments);
  va_end(arguments);
  throw Error(code, message, key);
}

}  // namespace qn
