// The saved state of a PackedAdamW. All integers and floats are little-endian; offsets are from the file's begin.
//   0    FileHeader (128 bytes)
//   128  per parameter with state, in parameter order: Record (64 bytes), then its name, padded with zeros to 8 bytes
//   then per record, at `offset` (a multiple of 64, zeros between): first moment values, scales, rows; second moment
//   values, scales, rows; master; residual codes, residual scales; those that the modes have, without gaps
// ops/adamw.h has the layout of each.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/file.h"
#include "core/staging.h"
#include "core/status.h"
#include "train/packed_adamw.h"

namespace qn {

namespace {

static_assert(std::endian::native == std::endian::little, "the file format is written by memcpy");

constexpr char kMagic[8] = {'Q', 'N', 'A', 'D', 'A', 'M', 'W', 'S'};
constexpr uint32_t kVersion = 1;

struct FileHeader {
  char magic[8];
  uint32_t version, parameters;
  int64_t header_bytes, file_bytes;  // header_bytes: this struct and the records
  int64_t step;
  uint64_t seed;
  double beta1, beta2, eps, weight_decay, last_grad_norm;
  uint8_t weights, moments, residual_in_forward, decay_vectors;
  uint8_t zero[36];
};
static_assert(sizeof(FileHeader) == 128);

struct Record {
  int64_t rows, cols, offset, bytes, updates;
  double global_scale;
  uint8_t storage, format, two_level, zero;
  uint32_t name_bytes;
  uint8_t reserved[8];
};
static_assert(sizeof(Record) == 64);

const char* const kWeightModes[] = {"nvfp4", "nvfp4+residual", "bf16", "fp32"};
const char* const kMomentFormats[] = {"nvfp4", "int8", "bf16", "fp32"};
const char* const kStorages[] = {"nvfp4", "fp32", "fp16", "bf16"};

const char* name_of(const char* const (&names)[4], uint8_t value) { return value < 4 ? names[value] : "unknown"; }

int64_t aligned(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

void check_mode(const std::string& path, const char* what, const char* found, const char* wanted) {
  if (std::strcmp(found, wanted) == 0) return;
  fail(Code::kStateMismatch, "%s was saved with %s '%s', this optimizer has '%s'", path.c_str(), what, found, wanted);
}

void check_header(const std::string& path, const FileHeader& found, const FileHeader& wanted, int64_t size) {
  if (std::memcmp(found.magic, kMagic, sizeof kMagic) != 0) {
    fail(Code::kStateMismatch, "%s is not a saved optimizer state", path.c_str());
  }
  if (found.version != kVersion) {
    fail(Code::kStateMismatch, "%s has version %u, this build reads version %u", path.c_str(), found.version, kVersion);
  }
  check_mode(path, "weights", name_of(kWeightModes, found.weights), name_of(kWeightModes, wanted.weights));
  check_mode(path, "moments", name_of(kMomentFormats, found.moments), name_of(kMomentFormats, wanted.moments));
  if (found.header_bytes < static_cast<int64_t>(sizeof found) || found.header_bytes > found.file_bytes) {
    fail(Code::kStateMismatch, "%s has a damaged header", path.c_str());
  }
  if (size != found.file_bytes) {
    fail(size < found.file_bytes ? Code::kTruncated : Code::kStateMismatch,
         "%s has %lld bytes, its header asks for %lld", path.c_str(), (long long)size, (long long)found.file_bytes);
  }
}

// The next record and its name; `at` moves behind it.
Record take_record(const std::string& path, const std::string& header, int64_t& at, std::string& name) {
  Record record;
  const auto size = static_cast<int64_t>(header.size());
  if (at + static_cast<int64_t>(sizeof record) > size) {
    fail(Code::kStateMismatch, "%s has a damaged header", path.c_str());
  }
  std::memcpy(&record, header.data() + at, sizeof record);
  at += static_cast<int64_t>(sizeof record);
  if (at + aligned(record.name_bytes, 8) > size) fail(Code::kStateMismatch, "%s has a damaged header", path.c_str());
  name.assign(header, static_cast<size_t>(at), record.name_bytes);
  at += aligned(record.name_bytes, 8);
  return record;
}

void check_record(const std::string& path, const Record& found, const std::string& found_name, const Record& wanted,
                  const std::string& name) {
  if (found_name != name) {
    fail(Code::kStateMismatch, "%s has the state of %s where this model has %s", path.c_str(),
         found_name.substr(0, 200).c_str(), name.c_str());
  }
  if (found.rows != wanted.rows || found.cols != wanted.cols) {
    fail(Code::kStateMismatch, "%s: %s is [%lld, %lld], this model has [%lld, %lld]", path.c_str(), name.c_str(),
         (long long)found.rows, (long long)found.cols, (long long)wanted.rows, (long long)wanted.cols);
  }
  if (found.storage != wanted.storage || found.two_level != wanted.two_level) {
    fail(Code::kStateMismatch, "%s: %s was %s with %s scales, this model has %s with %s", path.c_str(), name.c_str(),
         name_of(kStorages, found.storage), found.two_level ? "two-level" : "one-level",
         name_of(kStorages, wanted.storage), wanted.two_level ? "two-level" : "one-level");
  }
  if (found.format != wanted.format || found.offset != wanted.offset || found.bytes != wanted.bytes) {
    fail(Code::kStateMismatch, "%s: the state of %s has another layout", path.c_str(), name.c_str());
  }
}

void write_range(AtomicFile& file, Download& download, const void* data, int64_t bytes) {
  const int64_t most = std::min(bytes, download.capacity());
  for (int64_t begin = 0; begin < bytes; begin += most) {
    const int64_t count = std::min(most, bytes - begin);
    file.write(download.fetch(static_cast<const char*>(data) + begin, count), count);
  }
}

// All threads read.
void read_range(const File& file, int64_t offset, Upload& upload, void* data, int64_t bytes, const Cpu& cpu) {
  constexpr int64_t kPiece = 1 << 20;
  const int64_t most = std::min(bytes, upload.capacity());
  for (int64_t begin = 0; begin < bytes; begin += most) {
    const int64_t count = std::min(most, bytes - begin);
    upload.begin(count);
    uint8_t* to = upload.take(static_cast<char*>(data) + begin, count);
    cpu.pool.run(count, kPiece, [&](int64_t first, int64_t last, int) {
      file.read_exact(to + first, offset + begin + first, last - first);
    });
    upload.send();
  }
}

}  // namespace

std::vector<PackedAdamW::Range> PackedAdamW::ranges(const Parameter& parameter) const {
  const State& state = states_[parameter.id];
  std::vector<Range> ranges;
  for (const Buffer* buffer : {&state.m.values, &state.m.scales, &state.m.rows, &state.v.values, &state.v.scales,
                               &state.v.rows, &state.master, &parameter.residual_codes, &parameter.residual_scales}) {
    if (*buffer) ranges.push_back({buffer->data(), buffer->bytes()});
  }
  return ranges;
}

std::string PackedAdamW::file_header() const {
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.header_bytes = static_cast<int64_t>(sizeof header);
  for (const Parameter& parameter : model_.parameters()) {
    if (!states_[parameter.id].active) continue;
    ++header.parameters;
    header.header_bytes +=
        static_cast<int64_t>(sizeof(Record)) + aligned(static_cast<int64_t>(parameter.name.size()), 8);
  }
  std::string records;
  int64_t offset = header.header_bytes;
  for (const Parameter& parameter : model_.parameters()) {
    const State& state = states_[parameter.id];
    if (!state.active) continue;
    Record record{};
    record.rows = parameter.rows;
    record.cols = parameter.cols;
    record.offset = offset = aligned(offset, 64);
    for (const Range& range : ranges(parameter)) record.bytes += range.bytes;
    offset += record.bytes;
    record.updates = state.updates;
    record.global_scale = state.global_scale;
    record.storage = static_cast<uint8_t>(parameter.storage);
    record.format = static_cast<uint8_t>(state.format);
    record.two_level = parameter.two_level;
    record.name_bytes = static_cast<uint32_t>(parameter.name.size());
    records.append(reinterpret_cast<const char*>(&record), sizeof record);
    records.append(parameter.name);
    records.resize(static_cast<size_t>(aligned(static_cast<int64_t>(records.size()), 8)));
  }
  header.file_bytes = offset;
  header.step = step_;
  header.seed = options_.seed;
  header.beta1 = options_.beta1;
  header.beta2 = options_.beta2;
  header.eps = options_.eps;
  header.weight_decay = options_.weight_decay;
  header.last_grad_norm = last_grad_norm_;
  header.weights = static_cast<uint8_t>(options_.weights);
  header.moments = static_cast<uint8_t>(options_.moments);
  header.residual_in_forward = options_.residual_in_forward;
  header.decay_vectors = options_.decay_vectors;
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + records;
}

void PackedAdamW::save(const std::string& path, const Cpu& cpu) const {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  const std::string header = file_header();
  AtomicFile file(path);
  Download download(model_.device());
  file.write(header.data(), static_cast<int64_t>(header.size()));
  for (const Parameter& parameter : model_.parameters()) {
    if (!states_[parameter.id].active) continue;
    cpu.check_cancelled();
    const char zeros[64] = {};
    file.write(zeros, aligned(file.written(), 64) - file.written());
    for (const Range& range : ranges(parameter)) write_range(file, download, range.data, range.bytes);
  }
  file.commit();
}

void PackedAdamW::reset() {
  for (Parameter& parameter : model_.parameters()) {
    states_[parameter.id] = State();
    for (const Buffer* buffer : {&parameter.residual_codes, &parameter.residual_scales}) {
      if (*buffer) model_.device().zero(buffer->data(), buffer->bytes());
    }
  }
  step_ = 0;
  last_grad_norm_ = -1;
  make_missing_states();
}

void PackedAdamW::load(const std::string& path, const Cpu& cpu) {
  if (in_step_) fail(Code::kBusy, "a fused step is in progress");
  const File file = File::open_for_reading(path);
  const std::string wanted = file_header();
  FileHeader found, own;
  std::memcpy(&own, wanted.data(), sizeof own);
  file.read_exact(&found, 0, sizeof found);
  check_header(path, found, own, file.size());
  std::string header(static_cast<size_t>(found.header_bytes), '\0');
  file.read_exact(header.data(), 0, found.header_bytes);
  if (found.parameters != own.parameters) {
    fail(Code::kStateMismatch, "%s has the state of %u parameters, this model has %u trainable ones", path.c_str(),
         found.parameters, own.parameters);
  }

  std::vector<Record> records;
  int64_t at = sizeof found, own_at = sizeof own;
  for (uint32_t i = 0; i < found.parameters; ++i) {
    std::string name, own_name;
    const Record own_record = take_record(path, wanted, own_at, own_name);
    records.push_back(take_record(path, header, at, name));
    check_record(path, records.back(), name, own_record, own_name);
  }
  cpu.check_cancelled();
  try {
    Upload upload(model_.device());
    size_t next = 0;
    for (Parameter& parameter : model_.parameters()) {
      State& state = states_[parameter.id];
      if (!state.active) continue;
      const Record& record = records[next++];
      int64_t offset = record.offset;
      for (const Range& range : ranges(parameter)) {
        read_range(file, offset, upload, range.data, range.bytes, cpu);
        offset += range.bytes;
      }
      state.updates = record.updates;
      state.updated_step = 0;
      state.overwrites = parameter.overwrites;
      state.global_scale = record.global_scale;
    }
  } catch (...) {
    reset();
    throw;
  }
  if (options_.weights == WeightMode::kNvfp4Residual) model_.mark_changed();
  step_ = found.step;
  last_grad_norm_ = found.last_grad_norm;
  options_.seed = found.seed;
  options_.beta1 = found.beta1;
  options_.beta2 = found.beta2;
  options_.eps = found.eps;
  options_.weight_decay = found.weight_decay;
  options_.decay_vectors = found.decay_vectors != 0;
}

}  // namespace qn
