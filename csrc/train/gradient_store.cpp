#include "train/gradient_store.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"

namespace qn {

GradientStore::GradientStore(Model& model, const Options& options)
    : model_(model), options_(options), entries_(model.parameters().size()) {
  if (options.step_chunk_rows < 1) {
    fail(Code::kInvalidArgument, "Expected 1 or more rows for stepChunkRows but received %lld",
         (long long)options.step_chunk_rows);
  }
}

namespace {

MomentFormat stored_format(GradientFormat format, const Parameter& parameter) {
  if (parameter.is_vector || parameter.cols % 16 != 0) return MomentFormat::kFp32;
  return format == GradientFormat::kFp32   ? MomentFormat::kFp32
         : format == GradientFormat::kBf16 ? MomentFormat::kBf16
                                           : MomentFormat::kNvfp4;
}

}  // namespace

GradientStore::Entry& GradientStore::open(const Parameter& parameter) {
  Entry& entry = entries_[parameter.id];
  const MomentFormat format = stored_format(options_.format, parameter);
  if (format == MomentFormat::kNvfp4 && entry.micro_batches >= kMaxNvfp4MicroBatches && !options_.allow_many) {
    fail(Code::kUnsupported,
         "%d micro-batches are already summed in NVFP4 and a further one loses more than it adds: use 'bf16' or "
         "'fp32' gradients, or allow it",
         entry.micro_batches);
  }
  if (entry.values) return entry;
  MemoryLedger& ledger = model_.device().ledger();
  Entry fresh;
  fresh.format = format;
  fresh.values = Buffer(ledger, MemoryKind::kGradients, moment_value_bytes(format, parameter.count()));
  if (moment_has_scales(format)) {
    fresh.scales = Buffer(ledger, MemoryKind::kGradients, parameter.count() / 16);
    fresh.rows = Buffer(ledger, MemoryKind::kGradients, parameter.rows * 4);
  }
  entry = std::move(fresh);
  return entry;
}

StoreRowsArgs GradientStore::store_args(const Parameter& parameter, const Entry& entry, int64_t row_begin,
                                        int64_t row_count) const {
  StoreRowsArgs args;
  args.row_begin = row_begin;
  args.row_count = row_count;
  args.K = parameter.cols;
  args.format = entry.format;
  args.view = {entry.values.data(), entry.scales.as<uint8_t>(), entry.rows.as<float>()};
  args.seed = options_.seed;
  args.parameter = parameter.id;
  // Every sum of a run draws its own bits: 256 of them per optimizer step.
  args.step = static_cast<uint32_t>(optimizer_step_ << 8) + static_cast<uint32_t>(entry.micro_batches);
  return args;
}

void GradientStore::matrix(Parameter& parameter, const Produce& produce) {
  if (!parameter.trainable) return;
  Entry& entry = open(parameter);
  if (entry.format == MomentFormat::kFp32) {
    produce(0, parameter.rows, {entry.values.data(), false}, entry.micro_batches > 0);
    ++entry.micro_batches;
    return;
  }
  Device& device = model_.device();
  const auto engine = make_engine(device, device.cpu());
  const int64_t chunk = std::min(options_.step_chunk_rows, parameter.rows);
  const Buffer sum(device.ledger(), MemoryKind::kScratch, scratch_bytes(parameter, options_));
  for (int64_t begin = 0; begin < parameter.rows; begin += chunk) {
    const int64_t count = std::min(chunk, parameter.rows - begin);
    const StoreRowsArgs args = store_args(parameter, entry, begin, count);
    if (entry.micro_batches > 0) engine->load_rows(sum.as<float>(), args);
    produce(begin, count, {sum.data(), false}, entry.micro_batches > 0);
    engine->store_rows(args, sum.as<float>());
  }
  ++entry.micro_batches;
}

void GradientStore::vectors(const std::vector<Vector>& vectors) {
  Device& device = model_.device();
  const auto engine = make_engine(device, device.cpu());
  for (const auto& [parameter, dw] : vectors) {
    if (!parameter->trainable) continue;
    Entry& entry = open(*parameter);
    if (entry.micro_batches > 0) {
      engine->add(entry.values.as<float>(), dw, parameter->count());
    } else {
      device.copy(entry.values.data(), dw, parameter->count() * 4);
    }
    ++entry.micro_batches;
  }
}

int32_t GradientStore::micro_batches() const {
  int32_t most = 0;
  for (const Entry& entry : entries_) most = std::max(most, entry.micro_batches);
  return most;
}

const float* GradientStore::rows(const Parameter& parameter, int64_t row_begin, int64_t row_count, float* scratch,
                                 Engine& engine) const {
  const Entry& entry = this->entry(parameter);
  if (entry.micro_batches == 0) fail(Code::kInvalidArgument, "%s has no gradient", parameter.name.c_str());
  if (entry.format == MomentFormat::kFp32) return entry.values.as<float>() + row_begin * parameter.cols;
  engine.load_rows(scratch, store_args(parameter, entry, row_begin, row_count));
  return scratch;
}

double gradient_norm(Model& model, const Buffer& device_totals, Engine& engine) {
  std::vector<UpdateTotals> totals(model.parameters().size());
  engine.download(totals.data(), device_totals.as<UpdateTotals>(), static_cast<int64_t>(totals.size()));
  double total = 0;
  for (const Parameter& parameter : model.parameters()) {
    total += totals[parameter.id].gradient_squares;
    if (!std::isfinite(total)) {
      fail_at(parameter.name, Code::kNonFiniteGradient, "the gradient of %s is not finite: nothing was updated",
              parameter.name.c_str());
    }
  }
  return std::sqrt(total);
}

double GradientStore::norm(Engine& engine) const {
  MemoryLedger& ledger = model_.device().ledger();
  int64_t widest = 0, most_rows = 0;
  for (const Parameter& parameter : model_.parameters()) {
    if (!has(parameter)) continue;
    most_rows = std::max(most_rows, parameter.rows);
    if (entry(parameter).format == MomentFormat::kFp32) continue;
    widest = std::max(widest, std::min(options_.step_chunk_rows, parameter.rows) * parameter.cols);
  }
  const Buffer scratch(ledger, MemoryKind::kScratch, widest * 4), squares(ledger, MemoryKind::kScratch, most_rows * 8);
  const Buffer totals(ledger, MemoryKind::kScratch, static_cast<int64_t>(entries_.size() * sizeof(UpdateTotals)), true);
  for (const Parameter& parameter : model_.parameters()) {
    if (!has(parameter)) continue;
    engine.cpu().check_cancelled();
    const int64_t chunk = std::min(options_.step_chunk_rows, parameter.rows);
    for (int64_t begin = 0; begin < parameter.rows; begin += chunk) {
      const int64_t count = std::min(chunk, parameter.rows - begin);
      const float* g = rows(parameter, begin, count, scratch.as<float>(), engine);
      const RowSquares to{squares.as<double>() + begin, &parameter};
      engine.row_squares({const_cast<float*>(g), false, to}, count, parameter.cols);
    }
    const RowRange all{.parameter = parameter.id, .measured = true, .count = parameter.rows};
    engine.sum_rows(totals.as<UpdateTotals>(), nullptr, squares.as<double>(), {all});
  }
  return gradient_norm(model_, totals, engine);
}

void GradientStore::zero(int64_t optimizer_step) {
  for (Entry& entry : entries_) entry.micro_batches = 0;
  optimizer_step_ = optimizer_step;
}

void GradientStore::release() {
  for (Entry& entry : entries_) entry = Entry();
}

int64_t GradientStore::bytes_of(const Parameter& parameter, GradientFormat format) {
  const MomentFormat stored = stored_format(format, parameter);
  const int64_t scales = moment_has_scales(stored) ? parameter.count() / 16 + parameter.rows * 4 : 0;
  return moment_value_bytes(stored, parameter.count()) + scales;
}

int64_t GradientStore::scratch_bytes(const Parameter& parameter, const Options& options) {
  if (stored_format(options.format, parameter) == MomentFormat::kFp32) return 0;
  return std::min(options.step_chunk_rows, parameter.rows) * parameter.cols * 4;
}

int64_t GradientStore::missing_bytes() const {
  int64_t bytes = 0, sum = 0;
  for (const Parameter& parameter : model_.parameters()) {
    if (!parameter.trainable) continue;
    if (!entry(parameter).values) bytes += bytes_of(parameter, options_.format);
    sum = std::max(sum, scratch_bytes(parameter, options_));
  }
  return bytes + sum;
}

int64_t GradientStore::bytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.values.bytes() + entry.scales.bytes() + entry.rows.bytes();
  return bytes;
}

}  // namespace qn
