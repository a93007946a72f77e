#include "binding/ops/adamw_args.h"

namespace qn {

namespace {

// The index of object[name] among the enum's names.
template <typename Enum>
Enum enum_of(const Napi::Object& object, const char* name, std::initializer_list<const char*> names) {
  const std::string wanted = object.Get(name).As<Napi::String>().Utf8Value();
  int index = 0;
  for (const char* candidate : names) {
    if (wanted == candidate) return static_cast<Enum>(index);
    ++index;
  }
  fail(Code::kInvalidArgument, "Expected a known %s but received %s", name, wanted.c_str());
}

}  // namespace

MomentFormat format_of(const Napi::Object& object, const char* name) {
  return enum_of<MomentFormat>(object, name, {"nvfp4", "int8", "bf16", "fp32"});
}

AdamwArgs adamw_args_of(const Napi::Object& o) {
  AdamwArgs args;
  args.K = static_cast<int64_t>(number_of(o, "K", 0));
  args.row_begin = static_cast<int64_t>(number_of(o, "rowBegin", 0));
  args.row_count = static_cast<int64_t>(number_of(o, "rowCount", 0));
  args.g = bytes_of<float>(o, "g");
  args.gradient_scale = static_cast<float>(number_of(o, "gradientScale", 1));
  args.storage = enum_of<Storage>(o, "storage", {"nvfp4", "fp32", "fp16", "bf16"});
  if (o.Has("mode")) args.mode = enum_of<WeightMode>(o, "mode", {"nvfp4", "nvfp4+residual", "bf16", "fp32"});
  args.dense = bytes_of<void>(o, "dense");
  args.codes = bytes_of<uint8_t>(o, "codes");
  args.scales = bytes_of<uint8_t>(o, "scales");
  args.residual_codes = bytes_of<uint8_t>(o, "residualCodes");
  args.residual_scales = bytes_of<uint8_t>(o, "residualScales");
  args.master = bytes_of<void>(o, "master");
  args.moments = format_of(o, "moments");
  args.m = {bytes_of<void>(o, "mValues"), bytes_of<uint8_t>(o, "mScales"), bytes_of<float>(o, "mRows")};
  args.v = {bytes_of<void>(o, "vValues"), bytes_of<uint8_t>(o, "vScales"), bytes_of<float>(o, "vRows")};
  args.a = static_cast<float>(number_of(o, "a", 1));
  args.b = static_cast<float>(number_of(o, "b", 1));
  args.eps = static_cast<float>(number_of(o, "eps", 1e-8));
  args.rate = static_cast<float>(number_of(o, "rate", 0));
  args.keep = static_cast<float>(number_of(o, "keep", 1));
  args.seed = static_cast<uint64_t>(number_of(o, "seed", 0));
  args.parameter = static_cast<uint32_t>(number_of(o, "parameter", 0));
  args.step = static_cast<uint32_t>(number_of(o, "step", 1));
  return args;
}

Napi::Object adamw_totals(Napi::Env env, const std::vector<AdamwRow>& rows) {
  AdamwRow total;
  for (const AdamwRow& row : rows) {
    total.update_squares += row.update_squares;
    total.changed_codes += row.changed_codes;
    total.saturated += row.saturated;
  }
  const auto result = Napi::Object::New(env);
  result.Set("updateSquares", total.update_squares);
  result.Set("changedCodes", total.changed_codes);
  result.Set("saturated", total.saturated);
  return result;
}

StoreRowsArgs store_args_of(const Napi::Object& o) {
  StoreRowsArgs args;
  args.row_begin = static_cast<int64_t>(number_of(o, "rowBegin", 0));
  args.row_count = static_cast<int64_t>(number_of(o, "rowCount", 0));
  args.K = static_cast<int64_t>(number_of(o, "K", 0));
  args.format = format_of(o, "format");
  args.view = {bytes_of<void>(o, "values"), bytes_of<uint8_t>(o, "scales"), bytes_of<float>(o, "rows")};
  args.seed = static_cast<uint64_t>(number_of(o, "seed", 0));
  args.parameter = static_cast<uint32_t>(number_of(o, "parameter", 0));
  args.step = static_cast<uint32_t>(number_of(o, "step", 0));
  return args;
}

namespace {

// adamw({ … }, options) → { updateSquares, changedCodes, saturated }; arrays are changed in place.
Napi::Value adamw(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const AdamwArgs args = adamw_args_of(info[0].As<Napi::Object>());
    std::vector<AdamwRow> rows(static_cast<size_t>(args.row_count));
    adamw_cpu(rows.data(), args, ops_cpu(info));
    return adamw_totals(info.Env(), rows);
  });
}

// storeRows({ format, values, scales, rows, K, rowBegin, rowCount, seed, parameter, step }, x f32[rowCount, K],
// options)
void store_rows(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    store_rows_cpu(store_args_of(info[0].As<Napi::Object>()), array_data<float>(info[1]), ops_cpu(info));
  });
}

// loadRows({ … }, out f32[rowCount, K], options)
void load_rows(const Napi::CallbackInfo& info) {
  guarded(info.Env(),
          [&] { load_rows_cpu(array_data<float>(info[1]), store_args_of(info[0].As<Napi::Object>()), ops_cpu(info)); });
}

// rowSquares(g f32[N, K], K, options) → f64[N]
Napi::Value row_squares(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const int64_t K = integer(info[1]), N = static_cast<int64_t>(info[0].As<Napi::TypedArray>().ElementLength()) / K;
    auto squares = Napi::Float64Array::New(info.Env(), static_cast<size_t>(N));
    row_squares_cpu(squares.Data(), array_data<float>(info[0]), N, K, ops_cpu(info));
    return squares;
  });
}

// halveScales(scales u8[])
void halve_scales(const Napi::CallbackInfo& info) {
  adamw_halve_scales(array_data<uint8_t>(info[0]),
                     static_cast<int64_t>(info[0].As<Napi::TypedArray>().ElementLength()));
}

}  // namespace

void register_adamw_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("adamw", Napi::Function::New(env, adamw));
  ops.Set("storeRows", Napi::Function::New(env, store_rows));
  ops.Set("loadRows", Napi::Function::New(env, load_rows));
  ops.Set("rowSquares", Napi::Function::New(env, row_squares));
  ops.Set("halveScales", Napi::Function::New(env, halve_scales));
}

}  // namespace qn
