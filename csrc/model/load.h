// Fills parameters from files by offset. TypeScript parsed the index (.dat, safetensors or GGUF) and says where each
// tensor lies.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "format/nvfp4.h"
#include "model/model.h"

namespace qn {

// How the elements of a range lie: one after the other, or in the blocks of format/ggml_blocks.h.
enum class Layout : uint8_t { kPlain, kGgmlNvfp4, kGgmlQ8 };

// Bytes [offset, offset + bytes) of files[file].
struct FileRange {
  int32_t file = 0;
  int64_t offset = 0, bytes = 0;
  DType dtype = DType::kF32;  // of what is read from it: f32 of Q8_0 blocks
  Layout layout = Layout::kPlain;
};

struct TensorSource {
  std::string parameter;
  bool packed = false;  // true: codes + scales (+ global_scale); false: values
  FileRange values;     // kF32, kF16, kBF16
  FileRange codes;      // kU8
  FileRange scales;     // kE4M3, kF16 or kF32; the last two must hold E4M3 values exactly. Of NVFP4 blocks both are one
  float global_scale = 1.0f;
  bool two_level = false;
  bool residual = false;  // only of a two-level source: codes and scales of what the packed value misses, as above
  FileRange residual_codes, residual_scales;
};

struct LoadOptions {
  bool quantize = true;                // dense matrices with cols % 16 == 0 become NVFP4; else they keep their dtype
  Storage dense = Storage::kF32;       // used for all matrices when `convert_dense`
  bool convert_dense = false;          // dequantise packed (with its residual) and convert dense matrices to `dense`
  bool quantize_raw_embedding = true;  // false: an embedding that is dense in the file stays dense (prior .dat layout)
  bool two_level = true;               // of tensors that are quantised here
  ScaleRule scale_rule = ScaleRule::kAmax;
  // Into the buffers that a filled model has, in the storage that each parameter has: packed sources for NVFP4, values
  // for the others. A residual that the source lacks becomes zero.
  bool in_place = false;
};

// Throws kIo, kTruncated, kNonFiniteWeight (names the tensor: NaN or negative scale, NaN or infinite value),
// kInvalidArgument (a scale that is no E4M3 value), and as require_compute() does. Norm vectors become f32 or keep
// f16/bf16 when not converted. progress(bytes done, bytes total) is called from the lane.
void load_parameters(Model& model, const std::vector<std::string>& files, const std::vector<TensorSource>& sources,
                     const LoadOptions& options, const std::function<void(int64_t, int64_t)>& progress, const Cpu& cpu);

}  // namespace qn
