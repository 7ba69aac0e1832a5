// Attention of new tokens over the packed cache, with grouped queries and causal visibility.
//
//     scores = q K^T * factor,  p = softmax(scores),  out = sum_t p_t * scale_t * code_t
//
// Both products run on packed codes. p_t * scale_t enters the second one as integers of two bytes
// (Isa::split). Rows of a part are the queries of some tokens, and of heads that share a key and
// value head.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "inputs.h"
#include "pool.h"
#include "sequence.h"

namespace edgeqat {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float factor = 1;      // of q k^T
  int query_bits = 0;    // of tokens that are not high; kHalfBits: float queries
  int64_t group() const { return heads / kv_heads; }
};

// The newest tokens of a layer.
struct Queries {
  int64_t layer = 0;
  const float* q = nullptr;    // [tokens][heads * D]
  float* out = nullptr;        // [tokens][heads * D]
  float* to_first = nullptr;   // [tokens][heads] attention to position 0, or null: not wanted
  int64_t window = 0;          // newest tokens that one sees, itself among them; 0: all
};

class Attention {
 public:
  Attention(const Isa& isa, Pool& pool, const AttentionShape& shape);

  // The streams of the sequences hold keys and values of these tokens already.
  void attend(const std::vector<Span>& spans, const Queries& queries);

 private:
  struct Part {
    const Span* span;
    int64_t kv_head, head, heads, token, tokens;  // token: the first one, within the span
  };
  // Tokens first .. first + count - 1 of a stream, at `offset` of every row of scores.
  struct Region {
    const Stream* stream;
    int64_t index, first, count, padded, offset;  // index: of the stream within its head
  };
  struct Work {
    InputBuffer inputs;
    Buffer<float> queries, scores, sums, mixed;
    Buffer<uint8_t> high;
  };

  void add_parts(const Span& span);
  void attend_part(const Queries& queries, const Part& part, Work& work);
  // How many of the first `tokens` tokens stream `index` of a head holds.
  int64_t held(const Queries& queries, const Part& part, int64_t index, int64_t tokens) const;
  std::vector<Region> regions(const Queries& queries, const Part& part) const;
  const Inputs& query_inputs(const Queries& queries, const Part& part, const Region& region,
                             Work& work);
  void mix(const Region& region, int64_t rows, int64_t stride, Work& work);
  void mix_group(const Region& region, int64_t group, int64_t rows, int64_t stride, Work& work);

  const Isa& isa_;
  Pool& pool_;
  AttentionShape shape_;
  std::vector<Part> parts_;
  std::vector<Work> works_;  // one per thread
};

}  // namespace edgeqat
