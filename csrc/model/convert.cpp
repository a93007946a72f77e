#include "model/convert.h"

#include <algorithm>
#include <cmath>

#include "ops/gemm.h"

namespace qn {

namespace {

// Adds the errors of `now` against `old`; eight running sums, so that the loop vectorises and its order is fixed.
void add_errors(ConvertErrors& errors, const float* now, const float* old, int64_t count) {
  constexpr int kLanes = 8;
  double squared_error[kLanes] = {}, squares[kLanes] = {};
  float largest[kLanes] = {};
  const auto add = [&](int lane, int64_t i) {
    const float error = now[i] - old[i];
    squared_error[lane] += double(error) * double(error);
    squares[lane] += double(old[i]) * double(old[i]);
    const float magnitude = std::fabs(error);
    largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(lane, i + lane);
  }
  for (; i < count; ++i) add(0, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    errors.squared_error += squared_error[lane];
    errors.squares += squares[lane];
    errors.largest_error = std::max(errors.largest_error, largest[lane]);
  }
}

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

void read_any(const SourceReader& reader, const PieceScratch& scratch, const TensorExtent& tensor,
              const TensorSource& source, int64_t begin, int64_t end) {
  if (source.packed) return reader.read_decoded(scratch, tensor, source, begin, end);
  reader.read_values(scratch.values, tensor, source.values, begin, end, scratch.raw);
}

// work(begin, end, scratch, piece) over a range on all threads.
template <typename Work>
void in_pieces(int64_t range_begin, int64_t range_end, const Cpu& cpu, Work&& work) {
  cpu.pool.run(range_end - range_begin, kPiece, [&](int64_t begin, int64_t end, int worker) {
    cpu.check_cancelled();
    work(range_begin + begin, range_begin + end, PieceScratch(cpu, worker), static_cast<size_t>(begin / kPiece));
  });
}

size_t pieces_of(int64_t begin, int64_t end) { return static_cast<size_t>((end - begin + kPiece - 1) / kPiece); }

// Where the codes and scales of an element go.
struct PackedPlace {
  PackedPlace(const ConvertArgs& args, int64_t element)
      : codes(args.codes + (element - args.begin) / 2), scales(args.scales + (element - args.begin) / kBlockSize) {}
  uint8_t *codes, *scales;
};

ConvertErrors copy_piece(const SourceReader& reader, const ConvertArgs& args, const PieceScratch& scratch,
                         int64_t begin, int64_t end) {
  const PackedPlace out(args, begin);
  reader.read_packed(out.codes, out.scales, args.tensor, args.source->codes, args.source->scales, begin, end,
                     scratch.raw);
  ConvertErrors errors;
  errors.subnormal_scales = std::count_if(out.scales, out.scales + (end - begin) / kBlockSize,
                                          [](uint8_t scale) { return scale > 0 && scale < 8; });
  return errors;
}

ConvertErrors quantize_values(const ConvertArgs& args, const PieceScratch& scratch, int64_t begin, int64_t end,
                              const Cpu& cpu) {
  const PackedPlace out(args, begin);
  const int64_t count = end - begin;
  quantize_piece(out.codes, out.scales, scratch.values, count, args.global_scale, args.scale_rule, cpu.isa);
  linear_kernels(cpu.isa).decode_nvfp4(scratch.decoded, out.codes, out.scales, args.global_scale, count, false);
  ConvertErrors errors;
  add_errors(errors, scratch.decoded, scratch.values, count);
  errors.subnormal_scales = count_subnormal(out.scales, scratch.values, count / kBlockSize);
  return errors;
}

ConvertErrors narrow_values(const ConvertArgs& args, const PieceScratch& scratch, int64_t begin, int64_t end,
                            const Cpu& cpu) {
  const DType dtype = dtype_of(args.storage);
  uint8_t* out = args.values + (begin - args.begin) * dtype_bytes(dtype);
  narrow(out, scratch.values, args.storage, end - begin, {args.tensor.name, begin, args.tensor.cols});
  widen(scratch.decoded, out, dtype, end - begin, linear_kernels(cpu.isa));
  ConvertErrors errors;
  add_errors(errors, scratch.decoded, scratch.values, end - begin);
  return errors;
}

}  // namespace

void ConvertErrors::add(const ConvertErrors& other) {
  squared_error += other.squared_error;
  squares += other.squares;
  largest_error = std::max(largest_error, other.largest_error);
  subnormal_scales += other.subnormal_scales;
}

ConvertErrors convert_range(const SourceReader& reader, const ConvertArgs& args, const Cpu& cpu) {
  std::vector<ConvertErrors> pieces(pieces_of(args.begin, args.end));
  in_pieces(args.begin, args.end, cpu, [&](int64_t begin, int64_t end, const PieceScratch& scratch, size_t piece) {
    if (args.copies) {
      pieces[piece] = copy_piece(reader, args, scratch, begin, end);
      return;
    }
    read_any(reader, scratch, args.tensor, *args.source, begin, end);
    pieces[piece] = args.storage == Storage::kNvfp4 ? quantize_values(args, scratch, begin, end, cpu)
                                                    : narrow_values(args, scratch, begin, end, cpu);
  });
  ConvertErrors errors;
  for (const ConvertErrors& piece : pieces) errors.add(piece);
  return errors;
}

float amax_of_range(const SourceReader& reader, const TensorExtent& tensor, const TensorSource& source, int64_t begin,
                    int64_t end, const Cpu& cpu) {
  std::vector<float> pieces(pieces_of(begin, end));
  in_pieces(begin, end, cpu, [&](int64_t first, int64_t last, const PieceScratch& scratch, size_t piece) {
    read_any(reader, scratch, tensor, source, first, last);
    pieces[piece] = largest_magnitude(scratch.values, last - first);
  });
  return pieces.empty() ? 0.0f : *std::max_element(pieces.begin(), pieces.end());
}

RangeDifference compare_ranges(const SourceReader& reader_a, const TensorSource& a, const SourceReader& reader_b,
                               const TensorSource& b, const TensorExtent& tensor, int64_t begin, int64_t end,
                               const Cpu& cpu) {
  std::vector<RangeDifference> pieces(pieces_of(begin, end));
  in_pieces(begin, end, cpu, [&](int64_t first, int64_t last, const PieceScratch& scratch, size_t piece) {
    const int64_t count = last - first;
    read_any(reader_a, scratch, tensor, a, first, last);
    std::copy_n(scratch.values, count, scratch.decoded);
    read_any(reader_b, scratch, tensor, b, first, last);
    add_errors(pieces[piece].errors, scratch.values, scratch.decoded, count);
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
