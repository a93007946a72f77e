#include "model/load.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <set>

#include "core/file.h"
#include "core/status.h"
#include "model/load_pieces.h"
#include "model/slab.h"
#include "ops/gemm.h"
#include "ops/quantize.h"

namespace qn {

namespace {

// Elements a thread handles at a time: at most 1 MiB of f32, so that raw bytes, values and codes fit its scratch, and
// a whole number of blocks. Progress is looked at once a slab, of at most this length.
constexpr int64_t kPiece = 256 << 10;
constexpr int64_t kSlab = 64 * kPiece;
static_assert(kPiece % kBlockSize == 0 && 3 * kPiece * 4 <= kWorkerScratchBytes);

// Thirds of a worker's scratch.
struct Scratch {
  Scratch(const Cpu& cpu, int worker)
      : raw(cpu.pool.scratch<uint8_t>(worker)),
        more(raw + kPiece * 4),
        values(reinterpret_cast<float*>(raw + 2 * kPiece * 4)) {}
  uint8_t *raw, *more;
  float* values;
};

bool packs(const Parameter& p) { return !p.is_vector && p.cols % kBlockSize == 0; }

Storage storage_of(DType dtype) {
  return dtype == DType::kF32 ? Storage::kF32 : dtype == DType::kF16 ? Storage::kF16 : Storage::kBF16;
}

// What the parameter becomes in memory.
Storage target_storage(const Parameter& p, const TensorSource& source, const LoadOptions& options, bool is_embedding) {
  if (options.in_place) return p.storage;
  if (p.is_vector) return options.convert_dense ? Storage::kF32 : storage_of(source.values.dtype);
  if (options.convert_dense && (options.dense != Storage::kNvfp4 || packs(p))) {
    return options.dense;
  }
  if (source.packed) return Storage::kNvfp4;
  const bool stays = is_embedding && !options.quantize_raw_embedding;
  const bool quantizes = options.quantize && packs(p) && !stays && !options.convert_dense;
  return quantizes ? Storage::kNvfp4 : storage_of(source.values.dtype);
}

class Loader {
 public:
  Loader(const std::vector<std::string>& files, const LoadOptions& options,
         const std::function<void(int64_t, int64_t)>& progress, Device& device, const Cpu& cpu)
      : options_(options),
        progress_(progress),
        device_(device),
        cpu_(cpu),
        kernels_(linear_kernels(cpu.isa)),
        upload_(device) {
    for (const std::string& path : files) files_.push_back(File::open_for_reading(path));
    for (const File& file : files_) sizes_.push_back(file.size());
  }

  void check(const Parameter& p, const TensorSource& source) const {
    if (!source.packed) {
      check_range(p, source.values, p.count(), {DType::kF32, DType::kF16, DType::kBF16});
      return;
    }
    if (!packs(p)) fail(Code::kInvalidArgument, "%s cannot be NVFP4", p.name.c_str());
    check_range(p, source.codes, p.count() / 2, {DType::kU8});
    check_range(p, source.scales, p.count() / kBlockSize, {DType::kE4M3, DType::kF16, DType::kF32});
    if (source.residual) {
      check_range(p, source.residual_codes, p.count() / 2, {DType::kU8});
      check_range(p, source.residual_scales, p.count() / kBlockSize, {DType::kE4M3, DType::kF16, DType::kF32});
      if (!source.two_level) fail(Code::kInvalidArgument, "%s has a residual and one level", p.name.c_str());
    }
    if (!(source.global_scale > 0) || !(source.global_scale - source.global_scale == 0)) {
      fail(Code::kInvalidArgument, "%s has a global scale of %g", p.name.c_str(), double(source.global_scale));
    }
  }

  // Files are read once, and twice where the largest magnitude must be known before the first block is quantised.
  void plan(const TensorSource& source, Storage target) {
    total_ += source.packed ? packed_bytes(source) : source.values.bytes * (scans(source, target) ? 2 : 1);
  }

  void allocate(Parameter& p, const TensorSource& source, Storage target) const {
    if (options_.in_place) return keep(p, source);
    p.allocate(device_.ledger(), target);
    if (source.residual && target == Storage::kNvfp4) p.allocate_residual(device_.ledger(), false);
    p.two_level = true;
    p.global_scale = 1.0f;
    p.residual_in_forward = true;
  }

  void load(Parameter& p, const TensorSource& source) {
    const bool packs = p.storage == Storage::kNvfp4;
    if (source.packed && packs) return load_packed(p, source);
    if (source.packed) return dequantize(p, source);
    if (packs) return quantize(p, source);
    load_dense(p, source);
  }

  void report_end() const {
    if (progress_) progress_(total_, total_);
  }

 private:
  // The buffers stay where they are: graphs and optimizers know them.
  void keep(Parameter& p, const TensorSource& source) const {
    if (source.packed != (p.storage == Storage::kNvfp4)) {
      fail(Code::kInvalidArgument, "%s cannot be read in place: its source is %s", p.name.c_str(),
           source.packed ? "NVFP4" : "dense");
    }
    ++p.overwrites;
    if (source.residual && !p.residual_codes) p.allocate_residual(device_.ledger(), false);
    if (source.residual || !p.residual_codes) return;
    for (const Buffer* buffer : {&p.residual_codes, &p.residual_scales}) device_.zero(buffer->data(), buffer->bytes());
  }

  static int64_t packed_bytes(const TensorSource& source) {
    const int64_t residual = source.residual ? source.residual_codes.bytes + source.residual_scales.bytes : 0;
    return source.codes.bytes + source.scales.bytes + residual;
  }

  bool scans(const TensorSource& source, Storage target) const {
    return !source.packed && target == Storage::kNvfp4 && options_.two_level;
  }

  void check_range(const Parameter& p, const FileRange& range, int64_t count,
                   std::initializer_list<DType> dtypes) const {
    if (std::find(dtypes.begin(), dtypes.end(), range.dtype) == dtypes.end() || range.file < 0 ||
        range.file >= static_cast<int64_t>(files_.size()) || range.offset < 0 ||
        range.bytes != count * dtype_bytes(range.dtype)) {
      fail(Code::kInvalidArgument, "the source of %s is not the %lld elements that it needs", p.name.c_str(),
           (long long)count);
    }
    const int64_t size = sizes_[static_cast<size_t>(range.file)];
    if (range.offset > size - range.bytes) {
      fail(Code::kTruncated, "%s ends at byte %lld, inside %s at bytes %lld to %lld",
           files_[static_cast<size_t>(range.file)].path().c_str(), (long long)size, p.name.c_str(),
           (long long)range.offset, (long long)(range.offset + range.bytes));
    }
  }

  // Elements [begin, end) of a range; `divisor` elements of the tensor share one of the range.
  void read(void* out, const FileRange& range, int64_t begin, int64_t end) const {
    const int64_t width = dtype_bytes(range.dtype);
    files_[static_cast<size_t>(range.file)].read_exact(out, range.offset + begin * width, (end - begin) * width);
  }

  // work(begin, end, slab, scratch) over a parameter on all threads, in pieces of whole blocks, each slab of which goes
  // to the device, a residual included if work fills it; `bytes` of the files pass by.
  template <typename Work>
  void fill(Parameter& p, int64_t bytes, bool residual, Work&& work) {
    const int64_t length = std::min(kSlab, longest_slab(p, upload_) / kPiece * kPiece);
    in_slabs(p.count(), length, bytes, [&](int64_t begin, int64_t end) {
      const Slab slab(p, begin, end, residual, upload_);
      in_pieces(begin, end, [&](int64_t first, int64_t last, Scratch scratch) { work(first, last, slab, scratch); });
      upload_.send();
    });
  }

  // The same without anything to fill: work(begin, end, scratch).
  template <typename Work>
  void scan(const Parameter& p, int64_t bytes, Work&& work) {
    in_slabs(p.count(), kSlab, bytes, [&](int64_t begin, int64_t end) { in_pieces(begin, end, work); });
  }

  template <typename Work>
  void in_slabs(int64_t count, int64_t length, int64_t bytes, Work&& work) {
    const int64_t before = done_;
    for (int64_t begin = 0; begin < count; begin += length) {
      const int64_t end = std::min(begin + length, count);
      work(begin, end);
      done_ = before + static_cast<int64_t>(static_cast<double>(bytes) * double(end) / double(count));
      report();
    }
  }

  template <typename Work>
  void in_pieces(int64_t slab_begin, int64_t slab_end, Work&& work) {
    cpu_.pool.run(slab_end - slab_begin, kPiece, [&](int64_t begin, int64_t end, int worker) {
      cpu_.check_cancelled();
      work(slab_begin + begin, slab_begin + end, Scratch(cpu_, worker));
    });
  }

  // At most two hundred times.
  void report() {
    if (!progress_ || done_ >= total_ || (done_ - reported_) * 200 < total_) return;
    reported_ = done_;
    progress_(done_, total_);
  }

  // E4M3 scales of the blocks of elements [begin, end), checked.
  void read_scales(uint8_t* out, const Parameter& p, const FileRange& range, int64_t begin, int64_t end,
                   uint8_t* raw) const {
    const int64_t first = begin / kBlockSize, last = end / kBlockSize;
    const PieceName name{p.name, first, p.cols / kBlockSize};
    if (range.dtype == DType::kE4M3) {
      read(out, range, first, last);
      check_scales(out, last - first, name);
    } else {
      read(raw, range, first, last);
      encode_scales(out, raw, range.dtype, last - first, name);
    }
  }

  void load_packed(Parameter& p, const TensorSource& source) {
    p.two_level = source.two_level;
    p.global_scale = source.two_level ? source.global_scale : 1.0f;
    fill(p, packed_bytes(source), source.residual, [&](int64_t begin, int64_t end, const Slab& slab, Scratch scratch) {
      read(slab.codes(begin), source.codes, begin / 2, end / 2);
      read_scales(slab.scales(begin), p, source.scales, begin, end, scratch.raw);
      if (!source.residual) return;
      read(slab.residual_codes(begin), source.residual_codes, begin / 2, end / 2);
      read_scales(slab.residual_scales(begin), p, source.residual_scales, begin, end, scratch.raw);
    });
  }

  // `out` as f32: straight from the file, or through `raw`.
  void read_values(float* out, const Parameter& p, const FileRange& range, int64_t begin, int64_t end,
                   uint8_t* raw) const {
    void* in = range.dtype == DType::kF32 ? static_cast<void*>(out) : raw;
    read(in, range, begin, end);
    check_finite(in, range.dtype, end - begin, {p.name, begin, p.cols});
    widen(out, in, range.dtype, end - begin, kernels_);
  }

  void load_dense(Parameter& p, const TensorSource& source) {
    const bool same = storage_of(source.values.dtype) == p.storage;
    fill(p, source.values.bytes, false, [&](int64_t begin, int64_t end, const Slab& slab, Scratch scratch) {
      uint8_t* out = slab.dense(begin);
      const PieceName name{p.name, begin, p.cols};
      if (same) {
        read(out, source.values, begin, end);
        check_finite(out, source.values.dtype, end - begin, name);
      } else {
        read_values(scratch.values, p, source.values, begin, end, scratch.raw);
        narrow(out, scratch.values, p.storage, end - begin, name);
      }
    });
  }

  void dequantize(Parameter& p, const TensorSource& source) {
    const float global = source.two_level ? source.global_scale : 1.0f;
    // Codes and checked scales are finite: only a huge global scale can make a value that is not.
    const bool overflows = !std::isfinite(2 * kE2M1Max * kE4M3Max * global);
    fill(p, packed_bytes(source), false, [&](int64_t begin, int64_t end, const Slab& slab, Scratch scratch) {
      read_decoded(scratch, p, source.codes, source.scales, global, begin, end, false);
      if (source.residual) {
        read_decoded(scratch, p, source.residual_codes, source.residual_scales, global / 8, begin, end, true);
      }
      const PieceName name{p.name, begin, p.cols};
      if (overflows) check_finite(scratch.values, DType::kF32, end - begin, name);
      narrow(slab.dense(begin), scratch.values, p.storage, end - begin, name);
    });
  }

  // Sets scratch.values, or adds to it.
  void read_decoded(const Scratch& scratch, const Parameter& p, const FileRange& codes, const FileRange& scales,
                    float global, int64_t begin, int64_t end, bool add) const {
    uint8_t *code_bytes = scratch.raw, *scale_bytes = scratch.raw + kPiece / 2;
    read(code_bytes, codes, begin / 2, end / 2);
    read_scales(scale_bytes, p, scales, begin, end, scratch.more);
    kernels_.decode_nvfp4(scratch.values, code_bytes, scale_bytes, global, end - begin, add);
  }

  void quantize(Parameter& p, const TensorSource& source) {
    p.two_level = options_.two_level;
    if (options_.two_level) {
      std::atomic<uint32_t> largest{0};
      scan(p, source.values.bytes, [&](int64_t begin, int64_t end, Scratch scratch) {
        read_values(scratch.values, p, source.values, begin, end, scratch.raw);
        const auto bits = std::bit_cast<uint32_t>(largest_magnitude(scratch.values, end - begin));
        uint32_t seen = largest.load(std::memory_order_relaxed);
        while (seen < bits && !largest.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
        }
      });
      p.global_scale = two_level_global_scale(std::bit_cast<float>(largest.load()));
    }
    fill(p, source.values.bytes, false, [&](int64_t begin, int64_t end, const Slab& slab, Scratch scratch) {
      read_values(scratch.values, p, source.values, begin, end, scratch.raw);
      quantize_piece({slab.codes(begin),
                      slab.scales(begin),
                      scratch.values,
                      (end - begin) / kBlockSize,
                      kBlockSize,
                      p.global_scale,
                      Rounding::kNearestEven,
                      options_.scale_rule,
                      {}});
    });
  }

  void quantize_piece(const QuantizeArgs& args) const {
#if defined(__x86_64__)
    if (cpu_.isa == Isa::kAvx512) return quantize_nvfp4_rows_avx512(args, 0, args.N);
#endif
    quantize_nvfp4_rows(args, 0, args.N);
  }

  const LoadOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  Device& device_;
  const Cpu& cpu_;
  const LinearKernels& kernels_;
  Upload upload_;
  std::vector<File> files_;
  std::vector<int64_t> sizes_;
  int64_t done_ = 0, total_ = 0, reported_ = 0;
};

}  // namespace

void load_parameters(Model& model, const std::vector<std::string>& files, const std::vector<TensorSource>& sources,
                     const LoadOptions& options, const std::function<void(int64_t, int64_t)>& progress,
                     const Cpu& cpu) {
  struct Step {
    Parameter* parameter;
    const TensorSource* source;
    Storage target;
  };
  require_compute(model);
  Loader loader(files, options, progress, model.device(), cpu);
  std::vector<Step> steps;
  std::set<const Parameter*> seen;
  for (const TensorSource& source : sources) {
    Parameter* p = model.find(source.parameter);
    if (!p || !seen.insert(p).second) {
      fail(Code::kInvalidArgument, "%s %s", source.parameter.c_str(), p ? "has two sources" : "is no parameter");
    }
    loader.check(*p, source);
    const Storage target = target_storage(*p, source, options, p == &model.embedding());
    loader.plan(source, target);
    steps.push_back({p, &source, target});
  }
  for (const Parameter& p : model.parameters()) {
    if (!seen.contains(&p)) fail(Code::kInvalidArgument, "%s has no source", p.name.c_str());
  }
  // All of it first, so that a model that does not fit says so at once.
  for (const Step& step : steps) loader.allocate(*step.parameter, *step.source, step.target);
  for (const Step& step : steps) loader.load(*step.parameter, *step.source);
  model.mark_changed();
  loader.report_end();
}

}  // namespace qn
