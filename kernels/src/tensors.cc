#include "tensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>

#include "error.h"
#include "json.h"

namespace edgeqat {
namespace {

constexpr int64_t kMostElements = int64_t(1) << 40;

int64_t element_bytes(const std::string& type) {
  static const std::map<std::string, int64_t> sizes = {
      {"U8", 1}, {"I8", 1}, {"BOOL", 1}, {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"I64", 8}};
  const auto found = sizes.find(type);
  if (found == sizes.end()) throw Error("dtype: '" + type + "' is unknown; copy the folder again");
  return found->second;
}

// From how many bytes on weights are read from a copy in huge pages and not from the mapped file.
int64_t least_copied() {
  const char* pages = std::getenv("EDGEQAT_PAGES");
  if (!pages || !*pages || std::strcmp(pages, "file") == 0) return INT64_MAX;
  if (std::strcmp(pages, "huge") == 0) return 0;
  throw Error(std::string("EDGEQAT_PAGES: '") + pages + "' is unknown; known: huge, file");
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace

TensorFile::TensorFile(const std::string& path) {
  const int64_t copied_from = least_copied();
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    if (file >= 0) close(file);
    throw Error("model.safetensors: '" + path + "' cannot be read; name a packed folder");
  }
  bytes_ = status.st_size;
  void* map = bytes_ < 8 ? MAP_FAILED : mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (map == MAP_FAILED)
    throw Error("model.safetensors: '" + path + "' cannot be mapped; copy the folder again");
  map_ = static_cast<const uint8_t*>(map);
  try {
    if (bytes_ >= copied_from) copy_ = Buffer<uint8_t>(bytes_);
    if (copy_.size()) {
      std::memcpy(copy_.data(), map_, std::size_t(bytes_));
      munmap(map, std::size_t(bytes_));
      map_ = copy_.data();
    }
    read_header(path);
  } catch (...) {
    unmap();
    throw;
  }
}

TensorFile::~TensorFile() { unmap(); }

void TensorFile::unmap() {
  if (!copy_.size()) munmap(const_cast<uint8_t*>(map_), std::size_t(bytes_));
}

void TensorFile::read_header(const std::string& path) {
  uint64_t length = 0;
  std::memcpy(&length, map_, 8);
  if (length > uint64_t(bytes_ - 8))
    throw Error("model.safetensors: the header of '" + path + "' is longer than the file; copy " +
                "the folder again");
  const std::string_view text(reinterpret_cast<const char*>(map_) + 8, length);
  const Json header = Json::parse(text, "model.safetensors");
  const int64_t start = 8 + int64_t(length), room = bytes_ - start;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") continue;
    Tensor tensor{name, entry.at("dtype").string(), {}, nullptr};
    int64_t elements = 1;
    for (const Json& size : entry.at("shape").array()) {
      tensor.shape.push_back(size.integer(0, kMostElements));
      const int64_t next = tensor.shape.back();
      if (next && elements > kMostElements / next) throw Error(name + ": its shape is too large");
      elements *= next;
    }
    const auto& offsets = entry.at("data_offsets").array();
    if (offsets.size() != 2) throw Error(name + ": data_offsets needs two numbers");
    const int64_t begin = offsets[0].integer(0, room), end = offsets[1].integer(begin, room);
    if (end - begin != elements * element_bytes(tensor.type))
      throw Error(name + ": its bytes do not fit its shape " + text_of(tensor.shape));
    const int64_t alignment = tensor.type == "U8" ? 64 : element_bytes(tensor.type);
    if ((start + begin) % alignment)
      throw Error(name + ": it does not start on " + std::to_string(alignment) +
                  " bytes; copy the folder again");
    tensor.data = map_ + start + begin;
    ranges.emplace_back(begin, end);
    tensors_.emplace(name, std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second)
      throw Error("model.safetensors: two tensors of '" + path + "' overlap");
}

const Tensor& TensorFile::get(const std::string& name, const std::string& type,
                              const std::vector<int64_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw Error(name + ": missing from model.safetensors; copy the folder again");
  const Tensor& tensor = found->second;
  if (tensor.type != type || tensor.shape != shape)
    throw Error(name + ": it is " + tensor.type + " " + text_of(tensor.shape) +
                ", but config.json asks for " + type + " " + text_of(shape));
  return tensor;
}

bool is_file(const std::string& path) { return std::ifstream(path).good(); }

std::string read_text(const std::string& path, int64_t most_bytes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("folder: '" + path + "' cannot be read; name a packed folder");
  std::string text;
  for (char part[1 << 16]; file;) {
    file.read(part, sizeof part);
    text.append(part, std::size_t(file.gcount()));
    if (int64_t(text.size()) > most_bytes) throw Error("folder: '" + path + "' is too long");
  }
  return text;
}

}  // namespace edgeqat
