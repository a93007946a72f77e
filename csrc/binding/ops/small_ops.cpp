#include "binding/ops/ops.h"

namespace qn {

void register_small_ops(Napi::Env, Napi::Object) {}

}  // namespace qn
