// Files by absolute offset, and files that appear whole or not at all.
#pragma once

#include <cstdint>
#include <string>

namespace qn {

// A descriptor that is closed with its owner. Errors are kIo with the path and the system's text.
class File {
 public:
  static File open_for_reading(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  int64_t size() const;
  // Bytes [offset, offset + bytes), or Error(kTruncated) if the file ends before. Thread safe: no file position is
  // used.
  void read_exact(void* out, int64_t offset, int64_t bytes) const;

 private:
  friend class AtomicFile;
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  void close() noexcept;

  int descriptor_ = -1;
  std::string path_;
};

// Writes beside `path` (same directory, so the rename cannot cross a file system). commit() makes the bytes durable and
// puts the file in place of an older one in a single step; without it the destructor leaves nothing behind.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends. The bytes go straight to the kernel: callers gather small pieces themselves.
  void write(const void* data, int64_t bytes);
  int64_t written() const { return written_; }
  void commit();

 private:
  std::string path_;
  File file_;
  int64_t written_ = 0;
  int64_t flushing_ = 0;  // bytes that the disk was told to write
  bool committed_ = false;
};

}  // namespace qn
