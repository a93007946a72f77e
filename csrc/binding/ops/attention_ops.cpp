#include "binding/ops/ops.h"

namespace qn {

void register_attention_ops(Napi::Env, Napi::Object) {}

}  // namespace qn
