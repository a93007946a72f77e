#include "binding/native_convert.h"

#include <optional>

#include "binding/environment.h"
#include "binding/held_bytes.h"
#include "binding/native_device.h"
#include "binding/tensor_source.h"
#include "binding/values.h"
#include "core/status.h"
#include "model/convert.h"

namespace qn {

namespace {

// A tensor in files and the range of it that a job is about.
struct RangeJob {
  std::vector<std::string> files;
  TensorSource source;
  int64_t count, cols, begin, end;

  RangeJob(const Napi::Value& js_files, const Napi::Value& js_source, const Napi::Value& js_range)
      : files(strings_of(js_files)), source(source_of(js_source)) {
    const Napi::Object range = object_of(js_range);
    count = int_of(range.Get("count"));
    cols = int_of(range.Get("cols"));
    begin = int_of(range.Get("begin"));
    end = int_of(range.Get("end"));
    if (cols < 1 || begin < 0 || begin % kBlockSize != 0 || end < begin || end > count) {
      fail(Code::kInvalidArgument, "elements [%lld, %lld) of %lld", (long long)begin, (long long)end, (long long)count);
    }
  }

  TensorExtent extent() const { return {source.parameter, count, cols, cols % kBlockSize == 0}; }

  SourceReader open(const Cpu& cpu) const {
    SourceReader reader(files, cpu);
    reader.check(extent(), source);
    return reader;
  }
};

JobOrder order_of(const Napi::CallbackInfo& info, size_t cancel_index) {
  return Environment::of(info.Env())
      .order(unwrap<NativeDevice>(info[0]).device(), NativeCancel::token_of(info[cancel_index]));
}

Napi::Object to_js(Napi::Env env, const ConvertErrors& errors) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("squaredError", errors.squared_error);
  out.Set("squares", errors.squares);
  out.Set("largestError", errors.largest_error);
  out.Set("subnormalScales", double(errors.subnormal_scales));
  return out;
}

// convertRange(device, files, source, range, target, cancel)
Napi::Value JsConvertRange(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    RangeJob job(info[1], info[2], info[3]);
    const Napi::Object target = object_of(info[4]);
    const Storage storage = storage_of(string_of(target.Get("storage")));
    const bool packs = storage == Storage::kNvfp4, copies = bool_of(target.Get("copies"));
    const auto global_scale = static_cast<float>(number_of(target.Get("globalScale")));
    const ScaleRule rule = scale_rule_of(string_of(target.Get("scaleRule")));
    if (packs && job.cols % kBlockSize != 0) fail(Code::kInvalidArgument, "rows of %lld columns", (long long)job.cols);
    if (copies && !(packs && job.source.packed)) fail(Code::kInvalidArgument, "only NVFP4 is copied");

    const int64_t count = job.end - job.begin;
    std::optional<HeldBytes> values, codes, scales;
    if (packs) {
      codes.emplace(env, count / 2);
      scales.emplace(env, count / kBlockSize);
    } else {
      values.emplace(env, count * (storage == Storage::kF32 ? 4 : 2));
    }
    const auto data = [](const std::optional<HeldBytes>& bytes) { return bytes ? bytes->data : nullptr; };
    return run_job(
        env, order_of(info, 5),
        [job = std::move(job), storage, copies, global_scale, rule, values = data(values), codes = data(codes),
         scales = data(scales)](const Cpu& cpu) {
          const SourceReader reader = job.open(cpu);
          const ConvertArgs args{job.extent(), &job.source, job.begin, job.end, storage, copies,
                                 global_scale, rule,        values,    codes,   scales};
          return convert_range(reader, args, cpu);
        },
        [values, codes, scales](Napi::Env env, ConvertErrors& errors) -> Napi::Value {
          Napi::Object out = to_js(env, errors);
          if (values) out.Set("values", values->value());
          if (codes) out.Set("codes", codes->value());
          if (scales) out.Set("scales", scales->value());
          return out;
        });
  });
}

// amaxOfRange(device, files, source, range, cancel)
Napi::Value JsAmaxOfRange(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order_of(info, 4),
        [job = RangeJob(info[1], info[2], info[3])](const Cpu& cpu) {
          return amax_of_range(job.open(cpu), job.extent(), job.source, job.begin, job.end, cpu);
        },
        [](Napi::Env env, float& amax) -> Napi::Value { return Napi::Number::New(env, amax); });
  });
}

// compareRanges(device, filesA, sourceA, filesB, sourceB, range, cancel)
Napi::Value JsCompareRanges(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return run_job(
        info.Env(), order_of(info, 6),
        [a = RangeJob(info[1], info[2], info[5]), b = RangeJob(info[3], info[4], info[5])](const Cpu& cpu) {
          return compare_ranges(a.open(cpu), a.source, b.open(cpu), b.source, a.extent(), a.begin, a.end, cpu);
        },
        [](Napi::Env env, RangeDifference& difference) -> Napi::Value {
          Napi::Object out = to_js(env, difference.errors);
          out.Set("different", double(difference.different));
          return out;
        });
  });
}

}  // namespace

void register_convert(Napi::Env env, Napi::Object exports) {
  exports.Set("convertRange", Napi::Function::New(env, JsConvertRange, "convertRange"));
  exports.Set("amaxOfRange", Napi::Function::New(env, JsAmaxOfRange, "amaxOfRange"));
  exports.Set("compareRanges", Napi::Function::New(env, JsCompareRanges, "compareRanges"));
}

}  // namespace qn
