#include "model/convert.h"

#include <algorithm>

#include "format/ggml_blocks.h"
#include "ops/gemm.h"
#include "ops/value_errors.h"

namespace qn {

namespace {

// Elements a thread converts at a time: what lies between reading and the result stays in its caches.
constexpr int64_t kTile = 32 << 10;
static_assert(kPiece % kTile == 0);

// Blocks whose scale has fewer than four significant bits, or none although a value is not zero.
int64_t count_subnormal(const uint8_t* scales, const float* values, int64_t blocks) {
  int64_t count = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (scales[block] >= 8) continue;
    const float* x = values + block * kBlockSize;
    if (scales[block] > 0 || std::any_of(x, x + kBlockSize, [](float value) { return value != 0; })) ++count;
  }
  return count;
}

DType dtype_of(Storage storage) {
  return storage == Storage::kF32 ? DType::kF32 : storage == Storage::kF16 ? DType::kF16 : DType::kBF16;
}

// work(begin, end, scratch, piece) over a range on all threads.
template <typename Work>
void in_pieces(int64_t range_begin, int64_t range_end, const Cpu& cpu, Work&& work) {
  cpu.pool.run(range_end - range_begin, kTile, [&](int64_t begin, int64_t end, int worker) {
    cpu.check_cancelled();
    work(range_begin + begin, range_begin + end, PieceScratch(cpu, worker), static_cast<size_t>(begin / kTile));
  });
}

size_t pieces_of(int64_t begin, int64_t end) { return static_cast<size_t>((end - begin + kTile - 1) / kTile); }

// Where the codes and scales of a tile go: to their place, or to scratch, of which blocks are made in the end.
struct PackedTile {
  PackedTile(const ConvertArgs& args, const PieceScratch& scratch, int64_t begin, int64_t end) : count(end - begin) {
    if (args.layout == Layout::kGgmlNvfp4) {
      codes = scratch.more;
      scales = scratch.more + kTile / 2;
      blocks = args.out + (begin - args.begin) / kGgmlNvfp4Columns * kGgmlNvfp4Bytes;
    } else {
      codes = args.out + (begin - args.begin) / 2;
      scales = args.out + (args.end - args.begin) / 2 + (begin - args.begin) / kBlockSize;
    }
  }
  void finish() const {
    if (blocks) pack_ggml_nvfp4(blocks, codes, scales, count);
  }
  int64_t count;
  uint8_t *codes, *scales, *blocks = nullptr;
};

ConvertErrors copy_packed(const SourceReader& reader, const ConvertArgs& args, const PieceScratch& scratch,
                          int64_t begin, int64_t end) {
  const PackedTile out(args, scratch, begin, end);
  reader.read_packed(out.codes, out.scales, args.tensor, args.source->codes, args.source->scales, begin, end,
                     scratch.raw);
  out.finish();
  const auto is_subnormal = [](uint8_t scale) { return scale > 0 && scale < 8; };
  return {{}, std::count_if(out.scales, out.scales + out.count / kBlockSize, is_subnormal)};
}

ConvertErrors quantize_values(const SourceReader& reader, const ConvertArgs& args, const PieceScratch& scratch,
                              int64_t begin, int64_t end, const Cpu& cpu) {
  reader.read_any(scratch, args.tensor, *args.source, begin, end);
  const PackedTile out(args, scratch, begin, end);
  quantize_piece(out.codes, out.scales, scratch.values, out.count, args.global_scale, args.scale_rule, cpu.isa);
  linear_kernels(cpu.isa).decode_nvfp4(scratch.decoded, out.codes, out.scales, args.global_scale, out.count, false);
  out.finish();
  return {value_errors(scratch.decoded, scratch.values, out.count, cpu.isa),
          count_subnormal(out.scales, scratch.values, out.count / kBlockSize)};
}

// Values that are stored already as they shall be are read to where they go.
ConvertErrors convert_dense(const SourceReader& reader, const ConvertArgs& args, const PieceScratch& scratch,
                            int64_t begin, int64_t end, const Cpu& cpu) {
  const FileRange& stored = args.source->values;
  const DType dtype = dtype_of(args.storage);
  const int64_t at = begin - args.begin, count = end - begin;
  const PieceName name{args.tensor.name, begin, args.tensor.cols};
  if (args.layout == Layout::kGgmlQ8) {
    uint8_t* blocks = args.out + at / kGgmlQ8Columns * kGgmlQ8Bytes;
    reader.read_any(scratch, args.tensor, *args.source, begin, end);
    narrow_q8(blocks, scratch.values, count, name);
    unpack_ggml_q8_0(scratch.decoded, blocks, count);
  } else if (uint8_t* out = args.out + at * dtype_bytes(dtype); args.source->is_plain() && stored.dtype == dtype) {
    reader.read_stored(out, args.tensor, stored, begin, end);
    return {};
  } else {
    reader.read_any(scratch, args.tensor, *args.source, begin, end);
    narrow(out, scratch.values, args.storage, count, name, linear_kernels(cpu.isa));
    widen(scratch.decoded, out, dtype, count, linear_kernels(cpu.isa));
  }
  return {value_errors(scratch.decoded, scratch.values, count, cpu.isa), 0};
}

}  // namespace

void ConvertErrors::add(const ConvertErrors& other) {
  values.add(other.values);
  subnormal_scales += other.subnormal_scales;
}

ConvertErrors convert_range(const SourceReader& reader, const ConvertArgs& args, const Cpu& cpu) {
  std::vector<ConvertErrors> pieces(pieces_of(args.begin, args.end));
  in_pieces(args.begin, args.end, cpu, [&](int64_t begin, int64_t end, const PieceScratch& scratch, size_t piece) {
    pieces[piece] = args.copies                       ? copy_packed(reader, args, scratch, begin, end)
                    : args.storage == Storage::kNvfp4 ? quantize_values(reader, args, scratch, begin, end, cpu)
                                                      : convert_dense(reader, args, scratch, begin, end, cpu);
  });
  ConvertErrors errors;
  for (const ConvertErrors& piece : pieces) errors.add(piece);
  return errors;
}

float amax_of_range(const SourceReader& reader, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                    int64_t end, const Cpu& cpu) {
  std::vector<float> pieces(pieces_of(begin, end));
  in_pieces(begin, end, cpu, [&](int64_t first, int64_t last, const PieceScratch& scratch, size_t piece) {
    pieces[piece] = reader.read_largest(scratch, tensor, source, first, last);
  });
  return pieces.empty() ? 0.0f : *std::max_element(pieces.begin(), pieces.end());
}

RangeDifference compare_ranges(const SourceReader& reader_a, const TensorSource& a, const SourceReader& reader_b,
                               const TensorSource& b, const TensorExtent& tensor, int64_t begin, int64_t end,
                               const Cpu& cpu) {
  std::vector<RangeDifference> pieces(pieces_of(begin, end));
  in_pieces(begin, end, cpu, [&](int64_t first, int64_t last, const PieceScratch& scratch, size_t piece) {
    const int64_t count = last - first;
    reader_a.read_any(scratch, tensor, a, first, last);
    std::copy_n(scratch.values, count, scratch.decoded);
    reader_b.read_any(scratch, tensor, b, first, last);
    pieces[piece].errors = value_errors(scratch.values, scratch.decoded, count, cpu.isa);
    for (int64_t i = 0; i < count; ++i) pieces[piece].different += scratch.values[i] != scratch.decoded[i];
  });
  RangeDifference sum;
  for (const RangeDifference& piece : pieces) {
    sum.errors.add(piece.errors);
    sum.different += piece.different;
  }
  return sum;
}

}  // namespace qn
