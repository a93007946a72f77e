// Pieces of tensors in files, read by offset and checked. What loading and converting share.
#pragma once

#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/file.h"
#include "format/nvfp4.h"
#include "model/load.h"
#include "model/load_pieces.h"

namespace qn {

// Elements a thread handles at a time: at most 1 MiB of f32, and a whole number of blocks.
constexpr int64_t kPiece = 256 << 10;
static_assert(kPiece % kBlockSize == 0 && 4 * kPiece * 4 <= kWorkerScratchBytes);

// Quarters of a worker's scratch, each of kPiece f32.
struct PieceScratch {
  PieceScratch(const Cpu& cpu, int worker)
      : raw(cpu.pool.scratch<uint8_t>(worker)),
        more(raw + kPiece * 4),
        values(reinterpret_cast<float*>(raw + 2 * kPiece * 4)),
        decoded(reinterpret_cast<float*>(raw + 3 * kPiece * 4)) {}
  uint8_t *raw, *more;
  float *values, *decoded;
};

// A tensor as its source must be: `count` elements in rows of `cols`.
struct TensorExtent {
  const std::string& name;
  int64_t count, cols;
  bool packs;  // whether it may be NVFP4
};

// Thread safe. Elements [begin, end) are whole blocks of a packed source, and at most kPiece.
class SourceReader {
 public:
  SourceReader(const std::vector<std::string>& files, const Cpu& cpu);

  // Error(kInvalidArgument) unless the source is the tensor, Error(kTruncated) where a file ends inside it.
  void check(const TensorExtent& tensor, const TensorSource& source) const;

  // Bytes as they are stored, of a plain range.
  void read(void* out, const FileRange& range, int64_t begin, int64_t end) const;
  // Codes and E4M3 scales of elements [begin, end), straight from the file or through `raw`.
  void read_packed(uint8_t* code_bytes, uint8_t* scale_bytes, const TensorExtent& tensor, const FileRange& codes,
                   const FileRange& scales, int64_t begin, int64_t end, uint8_t* raw) const;
  // The finite values of a plain range, as they are stored.
  void read_stored(void* out, const TensorExtent& tensor, const FileRange& range, int64_t begin, int64_t end) const;
  // Dense values as f32: straight from the file, or through `raw`.
  void read_values(float* out, const TensorExtent& tensor, const FileRange& range, int64_t begin, int64_t end,
                   uint8_t* raw) const;
  // Codes in the order of memory, and the f32 absmax of every 64 elements, of which `begin` is a multiple.
  void read_bnb4(uint8_t* code_bytes, float* absmax, const TensorExtent& tensor, const Bnb4Source& source,
                 int64_t begin, int64_t end, uint8_t* raw) const;
  // scratch.values = the values of any source, with its residual.
  void read_any(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                int64_t end) const;
  // max |x| of them.
  float read_largest(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                     int64_t end) const;

 private:
  void check_range(const TensorExtent& tensor, const FileRange& range, int64_t count,
                   std::initializer_list<DType> dtypes) const;
  void check_bnb4(const TensorExtent& tensor, const Bnb4Source& source) const;
  void read_scales(uint8_t* out, const TensorExtent& tensor, const FileRange& range, int64_t begin, int64_t end,
                   uint8_t* raw) const;
  // Whole blocks of the file that hold elements [begin, end).
  void read_blocks(uint8_t* out, const TensorExtent& tensor, const FileRange& range, int64_t begin, int64_t end) const;
  // f32 absmax of blocks [first, last) of the file.
  void read_absmax(float* out, const TensorExtent& tensor, const Bnb4Source& source, int64_t first, int64_t last,
                   uint8_t* raw) const;
  void read_decoded(const PieceScratch& scratch, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                    int64_t end) const;
  void decode(const PieceScratch& scratch, const TensorExtent& tensor, const FileRange& codes, const FileRange& scales,
              float global, int64_t begin, int64_t end, bool add) const;

  const LinearKernels& kernels_;
  std::vector<File> files_;
  std::vector<int64_t> sizes_;
};

// Bytes that a source is read from.
int64_t source_bytes(const TensorSource& source);

}  // namespace qn
