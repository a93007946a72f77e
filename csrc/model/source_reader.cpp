#include "model/source_reader.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/memory.h"
#include "core/status.h"
#include "format/ggml_blocks.h"
#include "ops/gemm.h"

namespace qn {

namespace {

struct BlockSize {
  int64_t elements, bytes;
};

BlockSize block_of(Layout layout) {
  switch (layout) {
    case Layout::kGgmlNvfp4:
      return {kGgmlNvfp4Columns, kGgmlNvfp4Bytes};
    case Layout::kGgmlQ8:
      return {kGgmlQ8Columns, kGgmlQ8Bytes};
    case Layout::kPlain:
      break;
  }
  return {1, 0};
}

int64_t blocks_of(int64_t count, int64_t block) { return (count + block - 1) / block; }

}  // namespace

SourceReader::SourceReader(const std::vector<std::string>& files, const Cpu& cpu) : kernels_(linear_kernels(cpu.isa)) {
  for (const std::string& path : files) files_.push_back(File::open_for_reading(path));
  for (const File& file : files_) sizes_.push_back(file.size());
}

void SourceReader::check(const TensorExtent& tensor, const TensorSource& source) const {
  const std::string& name = tensor.name;
  if (source.bnb4) return check_bnb4(tensor, *source.bnb4);
  if (!source.packed) {
    check_range(tensor, source.values, tensor.count, {DType::kF32, DType::kF16, DType::kBF16});
    if (source.values.layout == Layout::kGgmlNvfp4) fail(Code::kInvalidArgument, "%s is NVFP4", name.c_str());
    return;
  }
  if (!tensor.packs) fail(Code::kInvalidArgument, "%s cannot be NVFP4", name.c_str());
  if (source.codes.layout == Layout::kGgmlQ8 || source.codes.layout != source.scales.layout ||
      (source.residual &&
       (source.residual_codes.layout != Layout::kPlain || source.residual_scales.layout != Layout::kPlain))) {
    fail(Code::kInvalidArgument, "the codes and scales of %s lie in different blocks", name.c_str());
  }
  check_range(tensor, source.codes, tensor.count / 2, {DType::kU8});
  check_range(tensor, source.scales, tensor.count / kBlockSize, {DType::kE4M3, DType::kF16, DType::kF32});
  if (source.residual) {
    check_range(tensor, source.residual_codes, tensor.count / 2, {DType::kU8});
    check_range(tensor, source.residual_scales, tensor.count / kBlockSize, {DType::kE4M3, DType::kF16, DType::kF32});
    if (!source.two_level) fail(Code::kInvalidArgument, "%s has a residual and one level", name.c_str());
  }
  if (!(source.global_scale > 0) || !(source.global_scale - source.global_scale == 0)) {
    fail(Code::kInvalidArgument, "%s has a global scale of %g", name.c_str(), double(source.global_scale));
  }
}

void SourceReader::check_bnb4(const TensorExtent& tensor, const Bnb4Source& source) const {
  const auto is_block = [](int64_t n) { return n >= 64 && n <= 4096 && std::has_single_bit(static_cast<uint64_t>(n)); };
  if (tensor.count % 2 != 0 || !is_block(source.block) || (source.nested && !is_block(source.nested_block))) {
    fail(Code::kInvalidArgument, "%s has blocks of %lld of %lld elements", tensor.name.c_str(), (long long)source.block,
         (long long)tensor.count);
  }
  const int64_t blocks = blocks_of(tensor.count, source.block);
  check_range(tensor, source.codes, tensor.count / 2, {DType::kU8});
  check_range(tensor, source.absmax, blocks, {source.nested ? DType::kU8 : DType::kF32});
  if (source.nested) check_range(tensor, source.nested_absmax, blocks_of(blocks, source.nested_block), {DType::kF32});
}

void SourceReader::check_range(const TensorExtent& tensor, const FileRange& range, int64_t count,
                               std::initializer_list<DType> dtypes) const {
  const BlockSize block = block_of(range.layout);
  // Blocks are those of the tensor's elements, whatever part of it is read from them.
  const bool fits = range.layout == Layout::kPlain ? range.bytes == count * dtype_bytes(range.dtype)
                                                   : tensor.cols % block.elements == 0 &&
                                                         range.bytes == tensor.count / block.elements * block.bytes;
  if (std::find(dtypes.begin(), dtypes.end(), range.dtype) == dtypes.end() || range.file < 0 ||
      range.file >= static_cast<int64_t>(files_.size()) || range.offset < 0 || !fits) {
    fail(Code::kInvalidArgument, "the source of %s is not the %lld elements that it needs", tensor.name.c_str(),
         (long long)count);
  }
  const int64_t size = sizes_[static_cast<size_t>(range.file)];
  if (range.offset > size - range.bytes) {
    fail(Code::kTruncated, "%s ends at byte %lld, inside %s at bytes %lld to %lld",
         files_[static_cast<size_t>(range.file)].path().c_str(), (long long)size, tensor.name.c_str(),
         (long long)range.offset, (long long)(range.offset + range.bytes));
  }
}

void SourceReader::read(void* out, const FileRange& range, int64_t begin, int64_t end) const {
  const int64_t width = dtype_bytes(range.dtype);
  files_[static_cast<size_t>(range.file)].read_exact(out, range.offset + begin * width, (end - begin) * width);
}

void SourceReader::read_packed(uint8_t* code_bytes, uint8_t* scale_bytes, const TensorExtent& tensor,
                               const FileRange& codes, const FileRange& scales, int64_t begin, int64_t end,
                               uint8_t* raw) const {
  if (codes.layout == Layout::kPlain) {
    read(code_bytes, codes, begin / 2, end / 2);
    read_scales(scale_bytes, tensor, scales, begin, end, raw);
    return;
  }
  read_blocks(raw, tensor, codes, begin, end);
  unpack_ggml_nvfp4(code_bytes, scale_bytes, raw, end - begin);
  check_scales(scale_bytes, (end - begin) / kBlockSize, {tensor.name, begin / kBlockSize, tensor.cols / kBlockSize});
}

void SourceReader::read_blocks(uint8_t* out, const TensorExtent& tensor, const FileRange& range, int64_t begin,
                               int64_t end) const {
  const BlockSize block = block_of(range.layout);
  if (begin % block.elements != 0 || end % block.elements != 0) {
    fail(Code::kInvalidArgument, "elements [%lld, %lld) of %s are not whole blocks", (long long)begin, (long long)end,
         tensor.name.c_str());
  }
  const int64_t first = begin / block.elements, last = end / block.elements;
  files_[static_cast<size_t>(range.file)].read_exact(out, range.offset + first * block.bytes,
                                                     (last - first) * block.bytes);
}

void SourceReader::read_scales(uint8_t* out, const TensorExtent& tensor, const FileRange& range, int64_t begin,
                               int64_t end, uint8_t* raw) const {
  const int64_t first = begin / kBlockSize, last = end / kBlockSize;
  const PieceName name{tensor.name, first, tensor.cols / kBlockSize};
  if (range.dtype == DType::kE4M3) {
    read(out, range, first, last);
    check_scales(out, last - first, name);
  } else {
    read(raw, range, first, last);
    encode_scales(out, raw, range.dtype, last - first, name);
  }
}

void SourceReader::read_stored(void* out, const TensorExtent& tensor, const FileRange& range, int64_t begin,
                               int64_t end) const {
  read(out, range, begin, end);
  check_finite(out, range.dtype, end - begin, {tensor.name, begin, tensor.cols});
}

void SourceReader::read_values(float* out, const TensorExtent& tensor, const FileRange& range, int64_t begin,
                               int64_t end, uint8_t* raw) const {
  if (range.layout == Layout::kGgmlQ8) {
    read_blocks(raw, tensor, range, begin, end);
    unpack_ggml_q8_0(out, raw, end - begin);
    return check_finite(out, DType::kF32, end - begin, {tensor.name, begin, tensor.cols});
  }
  void* in = range.dtype == DType::kF32 ? static_cast<void*>(out) : raw;
  read_stored(in, tensor, range, begin, end);
  widen(out, in, range.dtype, end - begin, kernels_);
}

void SourceReader::read_absmax(float* out, const TensorExtent& tensor, const Bnb4Source& source, int64_t first,
                               int64_t last, uint8_t* raw) const {
  if (!source.nested) {
    read(out, source.absmax, first, last);
  } else {
    read(raw, source.absmax, first, last);
    auto* nested = reinterpret_cast<float*>(raw + Arena::aligned(last - first));
    const int64_t begin = first / source.nested_block;
    read(nested, source.nested_absmax, begin, blocks_of(last, source.nested_block));
    for (int64_t i = first; i < last; ++i) {
      out[i - first] = bnb4_nested_absmax(source.nested_map.data(), raw[i - first],
                                          nested[i / source.nested_block - begin], source.nested_offset);
    }
  }
  check_absmax(out, last - first, tensor.name, first);
}

void SourceReader::read_bnb4(uint8_t* code_bytes, float* absmax, const TensorExtent& tensor, const Bnb4Source& source,
                             int64_t begin, int64_t end, uint8_t* raw) const {
  read(code_bytes, source.codes, begin / 2, end / 2);
  if (source.high_first) {
    for (int64_t i = 0; i < (end - begin) / 2; ++i) code_bytes[i] = swap_nibbles(code_bytes[i]);
  }
  const int64_t first = begin / source.block, last = blocks_of(end, source.block);
  if (source.block == kBnb4BlockSize) return read_absmax(absmax, tensor, source, first, last, raw);
  auto* blocks = reinterpret_cast<float*>(raw);
  read_absmax(blocks, tensor, source, first, last, raw + Arena::aligned((last - first) * 4));
  for (int64_t at = begin; at < end; at += kBnb4BlockSize) {
    absmax[(at - begin) / kBnb4BlockSize] = blocks[at / source.block - first];
  }
}

void SourceReader::read_any(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source,
                            int64_t begin, int64_t end) const {
  if (source.packed) return read_decoded(scratch, tensor, source, begin, end);
  if (!source.bnb4) return read_values(scratch.values, tensor, source.values, begin, end, scratch.raw);
  uint8_t* codes = scratch.raw;
  auto* absmax = reinterpret_cast<float*>(scratch.raw + kPiece / 2);
  read_bnb4(codes, absmax, tensor, *source.bnb4, begin, end, scratch.more);
  // Whole steps of the kernel: a piece ends inside one only where the tensor does, and its scratch goes on.
  const int64_t count = (end - begin + 15) / 16 * 16;
  kernels_.decode_bnb4(scratch.values, codes, absmax, bnb4_values(source.bnb4->codebook), 0, count);
}

float SourceReader::read_largest(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source,
                                 int64_t begin, int64_t end) const {
  if (source.is_plain()) {
    read_stored(scratch.raw, tensor, source.values, begin, end);
    return largest_magnitude(scratch.raw, source.values.dtype, end - begin);
  }
  read_any(scratch, tensor, source, begin, end);
  return largest_magnitude(scratch.values, DType::kF32, end - begin);
}

void SourceReader::read_decoded(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source,
                                int64_t begin, int64_t end) const {
  const float global = source.two_level ? source.global_scale : 1.0f;
  decode(scratch, tensor, source.codes, source.scales, global, begin, end, false);
  if (source.residual) {
    decode(scratch, tensor, source.residual_codes, source.residual_scales, global / 8, begin, end, true);
  }
  // Codes and checked scales are finite: only a huge global scale can make a value that is not.
  if (!std::isfinite(2 * kE2M1Max * kE4M3Max * global)) {
    check_finite(scratch.values, DType::kF32, end - begin, {tensor.name, begin, tensor.cols});
  }
}

// Sets scratch.values, or adds to it.
void SourceReader::decode(const PieceScratch& scratch, const TensorExtent& tensor, const FileRange& codes,
                          const FileRange& scales, float global, int64_t begin, int64_t end, bool add) const {
  uint8_t *code_bytes = scratch.raw, *scale_bytes = scratch.raw + kPiece / 2;
  read_packed(code_bytes, scale_bytes, tensor, codes, scales, begin, end, scratch.more);
  kernels_.decode_nvfp4(scratch.values, code_bytes, scale_bytes, global, end - begin, add);
}

int64_t source_bytes(const TensorSource& source) {
  if (source.bnb4) return source.bnb4->codes.bytes + source.bnb4->absmax.bytes + source.bnb4->nested_absmax.bytes;
  if (!source.packed) return source.values.bytes;
  const int64_t residual = source.residual ? source.residual_codes.bytes + source.residual_scales.bytes : 0;
  // NVFP4 blocks have codes and scales in the same bytes.
  const int64_t scales = source.codes.layout == Layout::kPlain ? source.scales.bytes : 0;
  return source.codes.bytes + scales + residual;
}

}  // namespace qn
