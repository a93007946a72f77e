#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/status.h"

namespace qn {

namespace {

// Linux transfers at most 0x7ffff000 bytes a call, macOS refuses more than INT_MAX.
constexpr int64_t kLargestTransfer = int64_t{1} << 30;

[[noreturn]] void fail_io(const char* action, const std::string& path) {
  fail(Code::kIo, "cannot %s %s: %s", action, path.c_str(), std::strerror(errno));
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The process id keeps two processes apart, the counter two writers of one process.
std::string name_beside(const std::string& path) {
  static std::atomic<uint32_t> counter{0};
  return path + "." + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".partial";
}

int open_new(const std::string& partial, const std::string& path) {
  const int descriptor = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) fail_io("create", path);
  return descriptor;
}

// A rename is durable when its directory is; some file systems cannot sync a directory, which is no failure of ours.
void sync_directory(const std::string& path) {
  const int descriptor = ::open(directory_of(path).c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

File File::open_for_reading(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_io("open", path);
  return File(descriptor, path);
}

File::File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() { close(); }

void File::close() noexcept {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

int64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_io("inspect", path_);
  return status.st_size;
}

void File::read_exact(void* out, int64_t offset, int64_t bytes) const {
  auto* to = static_cast<char*>(out);
  int64_t done = 0;
  while (done < bytes) {
    const auto want = static_cast<size_t>(std::min(bytes - done, kLargestTransfer));
    const ssize_t got = ::pread(descriptor_, to + done, want, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_io("read", path_);
    if (got == 0) {
      fail(Code::kTruncated, "%s ends at byte %lld, inside bytes %lld to %lld", path_.c_str(),
           (long long)(offset + done), (long long)offset, (long long)(offset + bytes));
    }
    done += got;
  }
}

AtomicFile::AtomicFile(const std::string& path) : path_(path), file_(-1, name_beside(path)) {
  file_.descriptor_ = open_new(file_.path_, path);
}

AtomicFile::~AtomicFile() {
  if (committed_) return;
  file_.close();
  ::unlink(file_.path_.c_str());
}

void AtomicFile::write(const void* data, int64_t bytes) {
  const auto* from = static_cast<const char*>(data);
  int64_t done = 0;
  while (done < bytes) {
    const auto want = static_cast<size_t>(std::min(bytes - done, kLargestTransfer));
    const ssize_t put = ::write(file_.descriptor_, from + done, want);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_io("write", path_);
    done += put;
  }
  written_ += bytes;
#ifdef __linux__
  // The disk begins at once, so that commit() has little left to wait for; what fails is reported there.
  constexpr int64_t kFlushBytes = int64_t{8} << 20;
  if (written_ - flushing_ < kFlushBytes) return;
  ::sync_file_range(file_.descriptor_, flushing_, written_ - flushing_, SYNC_FILE_RANGE_WRITE);
  flushing_ = written_;
#endif
}

void AtomicFile::commit() {
  if (::fsync(file_.descriptor_) != 0) fail_io("write", path_);
  // Some file systems report a failed write only here.
  if (::close(std::exchange(file_.descriptor_, -1)) != 0) fail_io("write", path_);
  if (::rename(file_.path_.c_str(), path_.c_str()) != 0) fail_io("replace", path_);
  committed_ = true;
  sync_directory(path_);
}

}  // namespace qn
