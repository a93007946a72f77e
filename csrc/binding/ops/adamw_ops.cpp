#include "binding/ops/ops.h"

namespace qn {

void register_adamw_ops(Napi::Env, Napi::Object) {}

}  // namespace qn
