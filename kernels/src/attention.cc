#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "tile.h"

namespace edgeqat {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr int64_t kRowsOfPart = 24;  // two blocks of the widest instruction set

template <class T>
T* sized(Buffer<T>& buffer, int64_t size) {
  if (buffer.size() < size) buffer = Buffer<T>(size + size / 2);
  return buffer.data();
}

}  // namespace

Attention::Attention(const Isa& isa, Pool& pool, const AttentionShape& shape)
    : isa_(isa), pool_(pool), shape_(shape), works_(pool.threads()) {}

void Attention::attend(const std::vector<Span>& spans, const Queries& queries) {
  if (spans.size() == 1 && spans[0].count == 1) {  // a thread may get some heads of a group
    const int64_t group = shape_.group();
    pool_.run([&](int thread) {
      const Range range = pool_.share(shape_.heads, thread);
      for (int64_t head = range.begin; head < range.end;) {
        const int64_t kv_head = head / group;
        const int64_t end = std::min({range.end, (kv_head + 1) * group, head + kRowsOfPart});
        attend_part(queries, {&spans[0], kv_head, head, end - head, 0, 1}, works_[thread]);
        head = end;
      }
    });
    return;
  }
  parts_.clear();
  for (const Span& span : spans) add_parts(span);
  std::atomic<std::size_t> next{0};  // parts differ in keys: whoever is free takes the next one
  pool_.run([&](int thread) {
    for (std::size_t i; (i = next.fetch_add(1)) < parts_.size();)
      attend_part(queries, parts_[i], works_[thread]);
  });
}

void Attention::add_parts(const Span& span) {
  const int64_t group = shape_.group(), heads = std::min(group, kRowsOfPart);
  const int64_t step = std::max<int64_t>(1, kRowsOfPart / heads);
  for (int64_t token = 0; token < span.count; token += step)
    for (int64_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head)
      for (int64_t head = 0; head < group; head += heads)
        parts_.push_back({&span, kv_head, kv_head * group + head, std::min(heads, group - head),
                          token, std::min(step, span.count - token)});
}

int64_t Attention::held(const Queries& queries, const Part& part, int64_t index,
                        int64_t tokens) const {
  const Widths& widths = part.span->sequence->widths();
  if (!widths.two_streams()) return tokens;
  const int64_t high = widths.kept_high(queries.layer, tokens);
  return index == 0 ? high : tokens - high;
}

std::vector<Attention::Region> Attention::regions(const Queries& queries, const Part& part) const {
  std::vector<Region> found;
  const std::vector<Stream>& streams = part.span->sequence->streams(queries.layer);
  const int64_t per_head = int64_t(streams.size()) / shape_.kv_heads;
  const int64_t before = part.span->sequence->position() + part.token;
  const int64_t hidden = queries.window ? std::max<int64_t>(0, before + 1 - queries.window) : 0;
  int64_t offset = 0;
  for (int64_t i = 0; i < per_head; ++i) {
    const int64_t first = held(queries, part, i, hidden) / kInputPad * kInputPad;
    const int64_t count = held(queries, part, i, before + part.tokens) - first;
    if (!count) continue;
    const int64_t padded = round_up(count, kInputPad);
    found.push_back({&streams[part.kv_head * per_head + i], i, first, count, padded, offset});
    offset += padded;
  }
  return found;
}

void Attention::attend_part(const Queries& queries, const Part& part, Work& work) {
  const int64_t rows = part.heads * part.tokens, dim = shape_.head_dim;
  const int64_t first = part.span->sequence->position() + part.token;
  const auto found = regions(queries, part);
  const int64_t stride = found.back().offset + found.back().padded;
  float* scores = sized(work.scores, rows * stride);
  float* sums = sized(work.sums, rows);
  for (const Region& region : found) {
    const Matrix keys = region.stream->keys(region.first, region.count);
    isa_.product(keys, query_inputs(queries, part, region, work), scores + region.offset, stride,
                 0, keys.tile_rows());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t seen = first + r / part.heads + 1;
      float *row = scores + r * stride + region.offset, *origin = row - region.first;
      std::fill(origin + held(queries, part, region.index, seen), row + region.padded, kHidden);
      if (queries.window && seen > queries.window)
        std::fill(row, origin + std::max(region.first, held(queries, part, region.index,
                                                            seen - queries.window)), kHidden);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    sums[r] = isa_.softmax(scores + r * stride, shape_.factor, stride);
  std::memset(sized(work.mixed, rows * dim), 0, rows * dim * sizeof(float));
  for (const Region& region : found) mix(region, rows, stride, work);
  // the first token is the first one of its stream
  int64_t first_at = 0;
  for (const Region& region : found)
    if (held(queries, part, region.index, 1)) first_at = region.offset;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = part.span->row + part.token + r / part.heads;
    const int64_t at = row * shape_.heads + part.head + r % part.heads;
    float* to = queries.out + at * dim;
    for (int64_t d = 0; d < dim; ++d) to[d] = work.mixed[r * dim + d] / sums[r];
    if (queries.to_first)
      queries.to_first[at] = scores[r * stride + first_at] / sums[r];
  }
}

const Inputs& Attention::query_inputs(const Queries& queries, const Part& part,
                                      const Region& region, Work& work) {
  const int64_t rows = part.heads * part.tokens, dim = shape_.head_dim;
  float* own = sized(work.queries, rows * dim);
  for (int64_t t = 0; t < part.tokens; ++t)
    std::memcpy(own + t * part.heads * dim,
                queries.q +
                    ((part.span->row + part.token + t) * shape_.heads + part.head) * dim,
                part.heads * dim * sizeof(float));
  uint8_t* high = nullptr;
  const Sequence& sequence = *part.span->sequence;
  if (const uint8_t* flags = sequence.widths().high(queries.layer, sequence.position())) {
    high = sized(work.high, rows);
    for (int64_t r = 0; r < rows; ++r) high[r] = flags[part.token + r / part.heads];
  }
  const InputSpec spec = {dim, region.stream->group(), region.stream->groups(), 0,
                          shape_.query_bits};
  if (region.stream->bits() != kHalfBits || shape_.query_bits == kHalfBits)
    return work.inputs.fill(isa_, nullptr, own, rows, dim, spec, high);
  // a float cache with quantized queries: their dequantized values
  const auto codes = work.inputs.rows(1, dim);
  for (int64_t r = 0; r < rows; ++r) {
    const int bits = high && high[r] ? kHighBits : shape_.query_bits;
    const float offset = half_step(bits) ? 0.5f : 0.0f;
    const float scale =
        isa_.quantize(own + r * dim, dim, bits, activation_clip(bits), codes.codes);
    for (int64_t d = 0; d < dim; ++d) own[r * dim + d] = (float(codes.codes[d]) + offset) * scale;
  }
  return work.inputs.floats(isa_, nullptr, own, rows, dim, dim);
}

void Attention::mix(const Region& region, int64_t rows, int64_t stride, Work& work) {
  if (region.stream->bits() != kHalfBits) {
    for (int64_t g = 0; g < region.stream->groups(); ++g) mix_group(region, g, rows, stride, work);
    return;
  }
  const Inputs& x = work.inputs.floats(isa_, nullptr, work.scores.data() + region.offset, rows,
                                       stride, region.count);
  for (int64_t g = 0; g < region.stream->groups(); ++g) {
    const Matrix values = region.stream->values(region.first, region.count, g);
    isa_.product(values, x, work.mixed.data() + g * region.stream->group(), shape_.head_dim, 0,
                 values.tile_rows());
  }
}

void Attention::mix_group(const Region& region, int64_t group, int64_t rows, int64_t stride,
                          Work& work) {
  const Matrix values = region.stream->values(region.first, region.count, group);
  const auto bytes = work.inputs.rows(2 * rows, region.count);
  for (int64_t r = 0; r < rows; ++r) {
    int8_t* high = bytes.codes + 2 * r * bytes.stride;
    const float step =
        isa_.split(work.scores.data() + r * stride + region.offset,
                   region.stream->value_scales(group) + region.first, region.padded, high,
                   high + bytes.stride);
    bytes.scale[2 * r] = 128 * step;
    bytes.scale[2 * r + 1] = step;
  }
  const InputSpec spec = {region.count, values.group_size, values.groups, 0, 8};
  const Inputs& x = work.inputs.interleave(isa_, 2 * rows, spec);
  float* sums = sized(work.queries, 2 * rows * values.rows);
  isa_.product(values, x, sums, values.rows, 0, values.tile_rows());
  for (int64_t r = 0; r < rows; ++r) {
    float* to = work.mixed.data() + r * shape_.head_dim + group * region.stream->group();
    const float* from = sums + 2 * r * values.rows;
    for (int64_t d = 0; d < values.rows; ++d) to[d] += from[d] + from[values.rows + d];
  }
}

}  // namespace edgeqat
