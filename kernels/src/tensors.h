// A mapped safetensors file: names, types, shapes and where the bytes are.
//
// Everything in the header is checked before anything is read through it: sizes agree with shapes,
// ranges lie inside the file and do not overlap, tiles start on 64 bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "buffer.h"

namespace edgeqat {

struct Tensor {
  std::string name, type;       // U8, F16, F32, ...
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
};

class TensorFile {
 public:
  explicit TensorFile(const std::string& path);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;

  // A tensor of exactly this type and shape; anything else is an Error that names it.
  const Tensor& get(const std::string& name, const std::string& type,
                    const std::vector<int64_t>& shape) const;
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }

 private:
  void read_header(const std::string& path);
  void unmap();

  const uint8_t* map_ = nullptr;
  int64_t bytes_ = 0;
  Buffer<uint8_t> copy_;  // of the file, in huge pages; or empty
  std::map<std::string, Tensor> tensors_;
};

// The text of a small file.
std::string read_text(const std::string& path, int64_t most_bytes);

bool is_file(const std::string& path);

}  // namespace edgeqat
