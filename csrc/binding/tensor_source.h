// Where tensors lie in files, as JavaScript says it (types/native.ts: NativeTensorSource).
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "model/load.h"

namespace qn {

TensorSource source_of(const Napi::Value& value);
Layout layout_of(const Napi::Value& blocks);  // of undefined: kPlain
std::vector<std::string> strings_of(const Napi::Value& value);
ScaleRule scale_rule_of(const std::string& name);

}  // namespace qn
