#include "binding/tensor_source.h"

#include <algorithm>

#include "binding/values.h"
#include "core/status.h"

namespace qn {

namespace {

DType file_dtype_of(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  if (name == "u8") return DType::kU8;
  if (name == "e4m3") return DType::kE4M3;
  fail(Code::kInvalidArgument, "Expected a known element type but received '%s'", name.c_str());
}

FileRange range_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value);
  return {static_cast<int32_t>(int_of(object.Get("file"))), int_of(object.Get("offset")), int_of(object.Get("bytes")),
          file_dtype_of(string_of(object.Get("dtype"))), layout_of(object.Get("blocks"))};
}

Bnb4Source bnb4_of(const Napi::Object& object) {
  Bnb4Source source;
  source.codebook = codebook_of(string_of(object.Get("codebook")));
  source.high_first = string_of(object.Get("nibbles")) == "high-first";
  source.block = int_of(object.Get("blockSize"));
  source.codes = range_of(object.Get("codes"));
  source.absmax = range_of(object.Get("absmax"));
  source.nested = object.Get("nested").IsObject();
  if (!source.nested) return source;
  const Napi::Object nested = object_of(object.Get("nested"));
  source.nested_block = int_of(nested.Get("blockSize"));
  source.nested_absmax = range_of(nested.Get("absmax"));
  source.nested_offset = nested.Get("offset").As<Napi::Number>().FloatValue();
  const auto map = nested.Get("map").As<Napi::Float32Array>();
  if (map.ElementLength() != source.nested_map.size()) {
    fail(Code::kInvalidArgument, "Expected f32[256] for map but received f32[%zu]", map.ElementLength());
  }
  std::copy_n(map.Data(), source.nested_map.size(), source.nested_map.begin());
  return source;
}

}  // namespace

Layout layout_of(const Napi::Value& blocks) {
  if (blocks.IsUndefined()) return Layout::kPlain;
  const std::string name = string_of(blocks);
  if (name == "nvfp4") return Layout::kGgmlNvfp4;
  if (name == "q8_0") return Layout::kGgmlQ8;
  fail(Code::kInvalidArgument, "Expected known blocks but received '%s'", name.c_str());
}

TensorSource source_of(const Napi::Value& value) {
  const Napi::Object object = object_of(value);
  TensorSource source;
  source.parameter = string_of(object.Get("parameter"));
  source.packed = object.Get("codes").IsObject();
  if (source.packed) {
    source.codes = range_of(object.Get("codes"));
    source.scales = range_of(object.Get("scales"));
    if (object.Get("globalScale").IsNumber())
      source.global_scale = object.Get("globalScale").As<Napi::Number>().FloatValue();
    source.two_level = bool_of(object.Get("twoLevel"));
    source.residual = object.Get("residualCodes").IsObject();
    if (source.residual) {
      source.residual_codes = range_of(object.Get("residualCodes"));
      source.residual_scales = range_of(object.Get("residualScales"));
    }
  } else if (object.Get("bnb4").IsObject()) {
    source.bnb4 = bnb4_of(object_of(object.Get("bnb4")));
  } else {
    source.values = range_of(object.Get("values"));
  }
  return source;
}

ScaleRule scale_rule_of(const std::string& name) {
  if (name == "amax") return ScaleRule::kAmax;
  if (name == "four-over-six") return ScaleRule::kFourOverSix;
  if (name == "amax-up") return ScaleRule::kAmaxUp;
  fail(Code::kInvalidArgument, "Expected 'amax' | 'four-over-six' | 'amax-up' for scaleRule but received '%s'",
       name.c_str());
}

std::vector<std::string> strings_of(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> strings;
  for (uint32_t i = 0; i < array.Length(); ++i) strings.push_back(string_of(array.Get(i)));
  return strings;
}

}  // namespace qn
