// Fills parameters from files by offset. TypeScript parsed the index (.dat, safetensors or GGUF) and says where each
// tensor lies.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "format/bnb4.h"
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

// 4-bit weights of bitsandbytes: table[code] · absmax of the block, over the elements in row-major order.
struct Bnb4Source {
  Codebook codebook = Codebook::kNf4;
  bool high_first = true;          // whether the first element of a byte is its high nibble
  int64_t block = kBnb4BlockSize;  // elements of an absmax: a power of two, 64 to 4096
  FileRange codes;                 // kU8
  FileRange absmax;                // kF32, or kU8 and nested: bnb4_nested_absmax() of what follows
  bool nested = false;
  int64_t nested_block = 256;  // absmax of a nested absmax: a power of two, 64 to 4096
  FileRange nested_absmax;     // kF32
  float nested_offset = 0;
  std::array<float, 256> nested_map{};
};

struct TensorSource {
  std::string parameter;
  bool packed = false;  // true: codes + scales (+ global_scale); false: values, or bnb4
  FileRange values;     // kF32, kF16, kBF16
  FileRange codes;      // kU8
  FileRange scales;     // kE4M3, kF16 or kF32; the last two must hold E4M3 values exactly. Of NVFP4 blocks both are one
  float global_scale = 1.0f;
  bool two_level = false;
  bool residual = false;  // only of a two-level source: codes and scales of what the packed value misses, as above
  FileRange residual_codes, residual_scales;
  std::optional<Bnb4Source> bnb4;

  // Dense values one after the other.
  bool is_plain() const { return !packed && !bnb4 && values.layout == Layout::kPlain; }
};

struct LoadOptions {
  bool quantize = true;                // matrices with cols % 16 == 0 become NVFP4; else they keep their dtype or codes
  Storage dense = Storage::kF32;       // used for all matrices when `convert_dense`
  bool convert_dense = false;          // dequantise packed (with its residual) and convert dense matrices to `dense`
  bool quantize_raw_embedding = true;  // false: an embedding that is not NVFP4 in the file stays as it is
  bool two_level = true;               // of tensors that are quantised here
  ScaleRule scale_rule = ScaleRule::kAmax;
  // Into the buffers that a filled model has, in the storage that each parameter has: packed sources for NVFP4, bnb4
  // for bitsandbytes, values for the others. A residual that the source lacks becomes zero.
  bool in_place = false;
};

// Throws kIo, kTruncated, kNonFiniteWeight (names the tensor: NaN or negative scale, NaN or infinite value),
// kInvalidArgument (a scale that is no E4M3 value), kUnsupported (bitsandbytes rows of no whole blocks), and as
// require_compute() does. Norm vectors become f32 or keep f16/bf16 when not converted. progress(bytes done, bytes
// total) is called from the lane.
void load_parameters(Model& model, const std::vector<std::string>& files, const std::vector<TensorSource>& sources,
                     const LoadOptions& options, const std::function<void(int64_t, int64_t)>& progress, const Cpu& cpu);

}  // namespace qn
