#include "model/load.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <set>

#include "core/status.h"
#include "model/slab.h"
#include "model/source_reader.h"
#include "ops/gemm.h"

namespace qn {

namespace {

// Progress is looked at once a slab, of at most this length.
constexpr int64_t kSlab = 64 * kPiece;

bool packs(const Parameter& p) { return !p.is_vector && p.cols % kBlockSize == 0; }

TensorExtent extent_of(const Parameter& p) { return {p.name, p.count(), p.cols, packs(p)}; }

Storage storage_of(DType dtype) {
  return dtype == DType::kF32 ? Storage::kF32 : dtype == DType::kF16 ? Storage::kF16 : Storage::kBF16;
}

void require_whole_blocks(const Parameter& p) {
  if (p.cols % kBnb4BlockSize == 0) return;
  fail_at(p.name, Code::kUnsupported,
          "%s has rows of %lld columns, and bitsandbytes weights run as they are in whole blocks of 64 only; load with "
          "weights: 'nvfp4', 'bf16', 'fp16' or 'fp32'",
          p.name.c_str(), (long long)p.cols);
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
  if (quantizes) return Storage::kNvfp4;
  if (source.bnb4) require_whole_blocks(p);
  return source.bnb4 ? Storage::kBnb4 : storage_of(source.values.dtype);
}

class Loader {
 public:
  Loader(const std::vector<std::string>& files, const LoadOptions& options,
         const std::function<void(int64_t, int64_t)>& progress, Device& device, const Cpu& cpu)
      : options_(options), progress_(progress), device_(device), cpu_(cpu), reader_(files, cpu), upload_(device) {}

  void check(const Parameter& p, const TensorSource& source) const { reader_.check(extent_of(p), source); }

  // Files are read once, and twice where the largest magnitude must be known before the first block is quantised.
  void plan(const TensorSource& source, Storage target) {
    total_ += source_bytes(source) * (scans(source, target) ? 2 : 1);
  }

  void allocate(Parameter& p, const TensorSource& source, Storage target) const {
    if (options_.in_place) return keep(p, source);
    p.allocate(device_.ledger(), target);
    if (source.bnb4) p.codebook = source.bnb4->codebook;
    if (source.residual && target == Storage::kNvfp4) p.allocate_residual(device_.ledger(), false);
    p.two_level = true;
    p.global_scale = 1.0f;
    p.residual_in_forward = true;
  }

  void load(Parameter& p, const TensorSource& source) {
    const bool packs = p.storage == Storage::kNvfp4;
    if (source.packed && packs) return load_packed(p, source);
    if (p.storage == Storage::kBnb4) return load_bnb4(p, source);
    if (packs) return quantize(p, source);
    load_dense(p, source);
  }

  void report_end() const {
    if (progress_) progress_(total_, total_);
  }

 private:
  // The buffers stay where they are: graphs and optimizers know them.
  void keep(Parameter& p, const TensorSource& source) const {
    const bool is_bnb4 = p.storage == Storage::kBnb4;
    if (source.packed != (p.storage == Storage::kNvfp4) || source.bnb4.has_value() != is_bnb4 ||
        (is_bnb4 && source.bnb4->codebook != p.codebook)) {
      fail(Code::kInvalidArgument, "%s cannot be read in place: its source has another form", p.name.c_str());
    }
    ++p.overwrites;
    if (source.residual && !p.residual_codes) p.allocate_residual(device_.ledger(), false);
    if (source.residual || !p.residual_codes) return;
    for (const Buffer* buffer : {&p.residual_codes, &p.residual_scales}) device_.zero(buffer->data(), buffer->bytes());
  }

  bool scans(const TensorSource& source, Storage target) const {
    return !source.packed && target == Storage::kNvfp4 && options_.two_level;
  }

  // work(begin, end, slab, scratch) over a parameter on all threads, in pieces of whole blocks, each slab of which goes
  // to the device, a residual included if work fills it; `bytes` of the files pass by.
  template <typename Work>
  void fill(Parameter& p, int64_t bytes, bool residual, Work&& work) {
    const int64_t length = std::min(kSlab, longest_slab(p, upload_) / kPiece * kPiece);
    in_slabs(p.count(), length, bytes, [&](int64_t begin, int64_t end) {
      const Slab slab(p, begin, end, residual, upload_);
      in_pieces(begin, end,
                [&](int64_t first, int64_t last, PieceScratch scratch) { work(first, last, slab, scratch); });
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
      work(slab_begin + begin, slab_begin + end, PieceScratch(cpu_, worker));
    });
  }

  // At most two hundred times.
  void report() {
    if (!progress_ || done_ >= total_ || (done_ - reported_) * 200 < total_) return;
    reported_ = done_;
    progress_(done_, total_);
  }

  void load_packed(Parameter& p, const TensorSource& source) {
    p.two_level = source.two_level;
    p.global_scale = source.two_level ? source.global_scale : 1.0f;
    fill(p, source_bytes(source), source.residual,
         [&](int64_t begin, int64_t end, const Slab& slab, PieceScratch scratch) {
           const TensorExtent tensor = extent_of(p);
           reader_.read_packed(slab.codes(begin), slab.scales(begin), tensor, source.codes, source.scales, begin, end,
                               scratch.raw);
           if (!source.residual) return;
           reader_.read_packed(slab.residual_codes(begin), slab.residual_scales(begin), tensor, source.residual_codes,
                               source.residual_scales, begin, end, scratch.raw);
         });
  }

  void load_bnb4(Parameter& p, const TensorSource& source) {
    fill(p, source_bytes(source), false, [&](int64_t begin, int64_t end, const Slab& slab, PieceScratch scratch) {
      auto* absmax = reinterpret_cast<float*>(slab.scales(begin));
      reader_.read_bnb4(slab.codes(begin), absmax, extent_of(p), *source.bnb4, begin, end, scratch.raw);
    });
  }

  void load_dense(Parameter& p, const TensorSource& source) {
    const bool same = source.is_plain() && storage_of(source.values.dtype) == p.storage;
    fill(p, source_bytes(source), false, [&](int64_t begin, int64_t end, const Slab& slab, PieceScratch scratch) {
      if (same) return reader_.read_stored(slab.dense(begin), extent_of(p), source.values, begin, end);
      reader_.read_any(scratch, extent_of(p), source, begin, end);
      const PieceName name{p.name, begin, p.cols};
      narrow(slab.dense(begin), scratch.values, p.storage, end - begin, name, linear_kernels(cpu_.isa));
    });
  }

  void quantize(Parameter& p, const TensorSource& source) {
    p.two_level = options_.two_level;
    if (options_.two_level) {
      std::atomic<uint32_t> largest{0};
      scan(p, source_bytes(source), [&](int64_t begin, int64_t end, PieceScratch scratch) {
        const float found = reader_.read_largest(scratch, extent_of(p), source, begin, end);
        const auto bits = std::bit_cast<uint32_t>(found);
        uint32_t seen = largest.load(std::memory_order_relaxed);
        while (seen < bits && !largest.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
        }
      });
      p.global_scale = two_level_global_scale(std::bit_cast<float>(largest.load()));
    }
    fill(p, source_bytes(source), false, [&](int64_t begin, int64_t end, const Slab& slab, PieceScratch scratch) {
      reader_.read_any(scratch, extent_of(p), source, begin, end);
      quantize_piece(slab.codes(begin), slab.scales(begin), scratch.values, end - begin, p.global_scale,
                     options_.scale_rule, cpu_.isa);
    });
  }

  const LoadOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  Device& device_;
  const Cpu& cpu_;
  SourceReader reader_;
  Upload upload_;
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
