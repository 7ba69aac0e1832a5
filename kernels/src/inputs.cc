#include "inputs.h"

#include <algorithm>
#include <cstring>

#include "tile.h"

namespace edgeqat {
namespace {

constexpr int64_t kLine = 64;

template <class T>
void grow(Buffer<T>& buffer, int64_t size) {
  if (buffer.size() < size) buffer = Buffer<T>(size + size / 2);
}

// Inputs of a row of codes: whole cache lines, and an odd number of them, or blocks of tokens would
// share the same sets of the first cache.
int64_t code_stride(int64_t columns) { return round_up(columns, kLine) | kLine; }

// Calls work(first, tokens) for every block of `block` tokens.
template <class Work>
void each_block(Pool* pool, int64_t tokens, int64_t block, const Work& work) {
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) work(b * block, std::min(block, tokens - b * block));
  };
  const int64_t blocks = (tokens + block - 1) / block;
  if (pool && blocks > 1) pool->split(blocks, some);
  else some(0, blocks);
}

}  // namespace

float activation_clip(int bits) {
  return bits == 4 ? 0.75f : bits == 3 ? 0.55f : bits == 2 ? 0.5f : 1.0f;
}

void InputBuffer::reserve(int64_t tokens, int64_t stride, int64_t groups) {
  grow(rows_, tokens * stride + kInputPad);
  grow(codes_, tokens * stride);
  grow(scale_, tokens);
  grow(sums_, tokens * groups);
}

const Inputs& InputBuffer::fill(const Isa& isa, Pool* pool, const float* x, int64_t tokens,
                                int64_t stride, const InputSpec& spec, const uint8_t* high) {
  if (spec.rotation > 1) {
    grow(rotated_, tokens * spec.columns);
    each_block(pool, tokens, isa.block_tokens, [&](int64_t first, int64_t count) {
      for (int64_t t = first; t < first + count; ++t)
        std::memcpy(rotated_.data() + t * spec.columns, x + t * stride,
                    spec.columns * sizeof(float));
      isa.rotate(rotated_.data() + first * spec.columns, count * spec.columns, spec.rotation);
    });
    x = rotated_.data();
    stride = spec.columns;
  }
  if (spec.bits == kHalfBits) return floats(isa, pool, x, tokens, stride, spec.columns);
  const int64_t padded = code_stride(spec.columns);
  reserve(tokens, padded, spec.groups);
  const int8_t* codes = tokens < isa.rows_from ? codes_.data() : rows_.data();
  inputs_ = {codes, nullptr, sums_.data(), scale_.data(), tokens, padded};
  each_block(pool, tokens, isa.block_tokens, [&](int64_t first, int64_t count) {
    for (int64_t t = first; t < first + count; ++t)
      quantize_row(isa, x + t * stride, spec, high && high[t] ? 8 : spec.bits, t);
    interleave_block(isa, spec, first, count);
  });
  return inputs_;
}

void InputBuffer::quantize_row(const Isa& isa, const float* x, const InputSpec& spec, int bits,
                               int64_t t) {
  int8_t* codes = rows_.data() + t * inputs_.stride;
  scale_[t] = isa.quantize(x, spec.columns, bits, activation_clip(bits), codes);
  if (half_step(bits)) {  // levels are half-integers: doubled they are odd integers
    for (int64_t i = 0; i < spec.columns; ++i) codes[i] = int8_t(2 * codes[i] + 1);
    scale_[t] /= 2;
  }
  std::memset(codes + spec.columns, 0, inputs_.stride - spec.columns);
}

void InputBuffer::interleave_block(const Isa& isa, const InputSpec& spec, int64_t first,
                                   int64_t tokens) {
  const int64_t stride = inputs_.stride;
  for (int64_t t = first; t < first + tokens; ++t)
    for (int64_t g = 0, begin = 0; g < spec.groups; ++g, begin += spec.group_size)
      sums_[t * spec.groups + g] = isa.sum(rows_.data() + t * stride + begin,
                                           std::min(spec.group_size, spec.columns - begin));
  if (inputs_.tokens >= isa.rows_from) return;
  isa.interleave(reinterpret_cast<const int32_t*>(rows_.data() + first * stride), tokens,
                 stride / 4, reinterpret_cast<int32_t*>(codes_.data() + first * stride));
}

InputBuffer::Rows InputBuffer::rows(int64_t tokens, int64_t columns) {
  const int64_t padded = code_stride(columns);
  grow(rows_, tokens * padded + kInputPad);
  grow(scale_, tokens);
  return {rows_.data(), scale_.data(), padded};
}

const Inputs& InputBuffer::interleave(const Isa& isa, int64_t tokens, const InputSpec& spec) {
  const int64_t padded = code_stride(spec.columns);
  grow(codes_, tokens * padded);
  grow(sums_, tokens * spec.groups);
  const int8_t* codes = tokens < isa.rows_from ? codes_.data() : rows_.data();
  inputs_ = {codes, nullptr, sums_.data(), scale_.data(), tokens, padded};
  each_block(nullptr, tokens, isa.block_tokens,
             [&](int64_t first, int64_t count) { interleave_block(isa, spec, first, count); });
  return inputs_;
}

const Inputs& InputBuffer::floats(const Isa& isa, Pool* pool, const float* x, int64_t tokens,
                                  int64_t stride, int64_t columns) {
  const int64_t padded = round_up(columns, kInputPad);
  grow(values_, tokens * padded);
  inputs_ = {nullptr, values_.data(), nullptr, nullptr, tokens, padded};
  each_block(pool, tokens, isa.block_tokens, [&](int64_t first, int64_t count) {
    float* to = values_.data() + first * padded;
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t t = 0; t < count; ++t) to[k * count + t] = x[(first + t) * stride + k];
  });
  return inputs_;
}

}  // namespace edgeqat
