#include "binding/ops/ops.h"

namespace qn {

void register_linear_ops(Napi::Env, Napi::Object) {}

}  // namespace qn
