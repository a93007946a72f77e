#include "ops/linear.h"

#include <atomic>
#include <cstring>
#include <string>

#include "binding/ops/ops.h"

namespace qn {

namespace {

template <typename T>
const T* sized(const Napi::Object& object, const char* key, int64_t count) {
  const Napi::Value value = object.Get(key);
  if (value.IsNull() || value.IsUndefined()) return nullptr;
  const T* data = array_data<T>(value);
  const auto length = static_cast<int64_t>(value.As<Napi::TypedArray>().ElementLength());
  if (length != count) {
    throw Napi::RangeError::New(object.Env(), std::string("Expected ") + std::to_string(count) + " elements for " +
                                                  key + " but received " + std::to_string(length));
  }
  return data;
}

float scalar(const Napi::Object& object, const char* key) {
  const Napi::Value value = object.Get(key);
  return value.IsNumber() ? number(value) : 1.0f;
}

bool flag(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

Codebook codebook_of(const Napi::Value& value) {
  const std::string name = value.ToString().Utf8Value();
  if (name != "nf4" && name != "fp4") throw Napi::RangeError::New(value.Env(), "Expected nf4 or fp4 for codebook");
  return name == "nf4" ? Codebook::kNf4 : Codebook::kFp4;
}

// (codes, absmax, x, codebook)
void quantize_codes(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const auto count = static_cast<int64_t>(info[2].As<Napi::TypedArray>().ElementLength());
    if (count % kBnb4BlockSize != 0) throw Napi::RangeError::New(info.Env(), "Expected a multiple of 64 values");
    quantize_bnb4(array_data<uint8_t>(info[0]), array_data<float>(info[1]), array_data<float>(info[2]), count,
                  codebook_of(info[3]));
  });
}

// (y, x, weight, T, accumulate, options?)
template <auto op>
void weighted(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    op(array_data<float>(info[0]), array_data<float>(info[1]), weight_view(info[2]), integer(info[3]), flag(info[4]),
       ops_cpu(info));
  });
}

// (dw, dy, x, T, N, K, rowBegin, rowCount, accumulate, options?)
void backward_weight(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    linear_backward_weight_cpu({.dw = array_data<float>(info[0]),
                                .dy = array_data<float>(info[1]),
                                .x = array_data<float>(info[2]),
                                .T = integer(info[3]),
                                .N = integer(info[4]),
                                .K = integer(info[5]),
                                .row_begin = integer(info[6]),
                                .row_count = integer(info[7]),
                                .accumulate = flag(info[8])},
                               ops_cpu(info));
  });
}

// (out, weight, rowBegin, rowCount, options?)
void dequantize_rows(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    dequantize_rows_cpu(array_data<float>(info[0]), weight_view(info[1]), integer(info[2]), integer(info[3]),
                        ops_cpu(info));
  });
}

// (y, x, weight, T, options?)
void reference(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    linear_reference_cpu(array_data<float>(info[0]), array_data<float>(info[1]), weight_view(info[2]), integer(info[3]),
                         ops_cpu(info));
  });
}

// (bytes u8, options?) -> the sum of its 64-bit words, low bits: the least work that reads every byte (a multiple of
// 128), to measure the machine's read bandwidth with.
Napi::Value read_words(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    constexpr int64_t kPiece = 1 << 14;  // words: 128 KiB
    const uint8_t* data = array_data<uint8_t>(info[0]);
    const auto words = static_cast<int64_t>(info[0].As<Napi::TypedArray>().ByteLength() / 8);
    std::atomic<uint64_t> total{0};
    ops_cpu(info).pool.run(words, kPiece, [&](int64_t begin, int64_t end, int) {
      // Eight register accumulators: with fewer, or with an array in memory, the additions are what is measured.
      typedef uint64_t Words __attribute__((vector_size(16)));
      Words s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
      const auto at = [&](int64_t i) {
        Words words;
        std::memcpy(&words, data + 8 * (begin + 2 * i), sizeof words);
        return words;
      };
      for (; begin + 16 <= end; begin += 16) {
        __builtin_prefetch(data + 8 * begin + 2048);  // as the products do: without it a fifth of the rate is missing
        __builtin_prefetch(data + 8 * begin + 2112);
        s0 += at(0), s1 += at(1), s2 += at(2), s3 += at(3), s4 += at(4), s5 += at(5), s6 += at(6), s7 += at(7);
      }
      const Words all_words = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
      const uint64_t all = all_words[0] + all_words[1];
      total += all;
    });
    return Napi::Number::New(info.Env(), static_cast<double>(total & 0xffffffffu));
  });
}

}  // namespace

WeightView weight_view(const Napi::Value& value) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), "Expected a weight object");
  const auto object = value.As<Napi::Object>();
  const std::string storage = object.Get("storage").ToString().Utf8Value();
  WeightView w;
  w.rows = integer(object.Get("rows"));
  w.cols = integer(object.Get("cols"));
  const int64_t count = w.rows * w.cols;
  if (storage == "nvfp4") {
    if (w.cols % 16 != 0) throw Napi::RangeError::New(value.Env(), "Expected a multiple of 16 for cols");
    w.storage = Storage::kNvfp4;
    w.packed = {sized<uint8_t>(object, "codes", count / 2), sized<uint8_t>(object, "scales", count / 16),
                scalar(object, "globalScale")};
    w.residual = {sized<uint8_t>(object, "residualCodes", count / 2),
                  sized<uint8_t>(object, "residualScales", count / 16), scalar(object, "residualGlobalScale")};
  } else if (storage == "bnb4") {
    if (w.cols % kBnb4BlockSize != 0) throw Napi::RangeError::New(value.Env(), "Expected a multiple of 64 for cols");
    w.storage = Storage::kBnb4;
    w.bnb4 = {sized<uint8_t>(object, "codes", count / 2), sized<float>(object, "absmax", count / kBnb4BlockSize),
              codebook_of(object.Get("codebook"))};
  } else if (storage == "f32") {
    w.storage = Storage::kF32;
    w.dense = sized<float>(object, "dense", count);
  } else if (storage == "f16" || storage == "bf16") {
    w.storage = storage == "f16" ? Storage::kF16 : Storage::kBF16;
    w.dense = sized<uint16_t>(object, "dense", count);
  } else {
    throw Napi::RangeError::New(value.Env(),
                                "Expected nvfp4, bnb4, f32, f16 or bf16 for storage but received " + storage);
  }
  return w;
}

void register_linear_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("linear", Napi::Function::New<weighted<linear_cpu>>(env, "linear"));
  ops.Set("linearBackwardInput", Napi::Function::New<weighted<linear_backward_input_cpu>>(env, "linearBackwardInput"));
  ops.Set("linearBackwardWeight", Napi::Function::New<backward_weight>(env, "linearBackwardWeight"));
  ops.Set("dequantizeRows", Napi::Function::New<dequantize_rows>(env, "dequantizeRows"));
  ops.Set("quantizeBnb4", Napi::Function::New<quantize_codes>(env, "quantizeBnb4"));
  ops.Set("readWords", Napi::Function::New<read_words>(env, "readWords"));
  ops.Set("linearReference", Napi::Function::New<reference>(env, "linearReference"));
}

}  // namespace qn
