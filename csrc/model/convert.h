// Tensors of files in another form, a range of elements at a time and without a model: what a converter does.
//
// A range is elements [begin, end) in whole blocks (begin % 16 == 0). The same bytes and the same sums for any number
// of threads.
#pragma once

#include "core/cpu.h"
#include "model/source_reader.h"
#include "ops/value_errors.h"
#include "ops/weight_view.h"

namespace qn {

struct ConvertArgs {
  TensorExtent tensor;
  const TensorSource* source;
  int64_t begin, end;
  // The form: dense, or NVFP4 under `global_scale`; plain, or NVFP4 and f32 in the blocks of a GGUF. With `copies` a
  // packed source keeps its codes and scales.
  Storage storage;
  Layout layout;
  bool copies;
  float global_scale;
  ScaleRule scale_rule;
  // Out: bytes of [begin, end): values or blocks, or codes u8[count / 2] and after them scales e4m3[count / 16].
  uint8_t* out;
};

// What became of the values of a range: error = new − old.
struct ConvertErrors {
  ValueErrors values;
  int64_t subnormal_scales = 0;  // blocks that are not zero under a scale below 2^-6

  void add(const ConvertErrors& other);
};

// Throws as load_parameters() does.
ConvertErrors convert_range(const SourceReader& reader, const ConvertArgs& args, const Cpu& cpu);

// max |x| of the values of a source.
float amax_of_range(const SourceReader& reader, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                    int64_t end, const Cpu& cpu);

// How the values of two sources differ: error = b − a.
struct RangeDifference {
  ValueErrors errors;
  int64_t different = 0;  // elements
};
RangeDifference compare_ranges(const SourceReader& reader_a, const TensorSource& a, const SourceReader& reader_b,
                               const TensorSource& b, const TensorExtent& tensor, int64_t begin, int64_t end,
                               const Cpu& cpu);

}  // namespace qn
