#include "binding/ops/ops.h"

namespace qn {

void register_nvfp4_ops(Napi::Env, Napi::Object) {}

}  // namespace qn
