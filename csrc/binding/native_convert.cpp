#include "binding/native_convert.h"

#include "binding/environment.h"
#include "binding/held_bytes.h"
#include "binding/native_device.h"
#include "binding/tensor_source.h"
#include "binding/values.h"
#include "core/status.h"
#include "format/ggml_blocks.h"
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

Napi::Object to_js(Napi::Env env, const ValueErrors& errors) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("squaredError", errors.squared_error);
  out.Set("squares", errors.squares);
  out.Set("largestError", errors.largest_error);
  return out;
}

// Of what convert_range() makes.
int64_t made_bytes(const RangeJob& job, Storage storage, Layout layout) {
  const int64_t count = job.end - job.begin;
  const auto in_blocks = [&](Storage wanted, int64_t columns, int64_t bytes) {
    if (storage != wanted || job.begin % columns != 0 || job.end % columns != 0) {
      fail(Code::kInvalidArgument, "elements [%lld, %lld) in blocks", (long long)job.begin, (long long)job.end);
    }
    return count / columns * bytes;
  };
  if (layout == Layout::kGgmlNvfp4) return in_blocks(Storage::kNvfp4, kGgmlNvfp4Columns, kGgmlNvfp4Bytes);
  if (layout == Layout::kGgmlQ8) return in_blocks(Storage::kF32, kGgmlQ8Columns, kGgmlQ8Bytes);
  if (storage == Storage::kNvfp4) return count / 2 + count / kBlockSize;
  return count * (storage == Storage::kF32 ? 4 : 2);
}

// convertRange(device, files, source, range, target, out, cancel)
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

    const Layout layout = layout_of(target.Get("blocks"));
    const HeldBytes out(uint8_array_of(info[5]));
    if (out.bytes < made_bytes(job, storage, layout)) fail(Code::kInvalidArgument, "%lld bytes", (long long)out.bytes);
    return run_job(
        env, order_of(info, 6),
        [job = std::move(job), storage, layout, copies, global_scale, rule, data = out.data](const Cpu& cpu) {
          const SourceReader reader = job.open(cpu);
          return convert_range(
              reader,
              {job.extent(), &job.source, job.begin, job.end, storage, layout, copies, global_scale, rule, data}, cpu);
        },
        [out](Napi::Env env, ConvertErrors& errors) -> Napi::Value {
          Napi::Object result = to_js(env, errors.values);
          result.Set("subnormalScales", double(errors.subnormal_scales));
          return result;
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
