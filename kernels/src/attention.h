// Attention of new tokens over the packed cache, with grouped queries and causal visibility.
//
//     scores = q K^T / sqrt(D),  p = softmax(scores),  out = sum_t p_t * scale_t * code_t
//
// Both products run on packed codes. p_t * scale_t enters the second one as 14-bit integers, in two
// bytes. Rows of a part are the queries of some tokens and of heads that share a key/value head.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "cache.h"
#include "inputs.h"
#include "pool.h"

namespace edgeqat {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t sinks = 0;     // tokens of the high stream; 0: there is one stream
  int query_bits = 0;    // kHalfBits: float queries
  int64_t group() const { return heads / kv_heads; }
};

class Attention {
 public:
  Attention(const Isa& isa, Pool& pool, const AttentionShape& shape);

  // q and out [tokens][heads * D] of the positions first .. first + tokens - 1, which the streams
  // hold already; streams[kv_head * streams_per_head].
  void attend(const std::vector<Stream>& streams, const float* q, int64_t first, int64_t tokens,
              float* out);

 private:
  struct Part {
    int64_t kv_head, head, heads, token, tokens;
  };
  // Some tokens of a stream, at `offset` of every row of scores.
  struct Region {
    const Stream* stream;
    int64_t start, count, padded, offset;  // start: position of its first token
  };
  struct Work {
    InputBuffer inputs;
    Buffer<float> queries, scores, sums, mixed;
  };

  void attend_part(const std::vector<Stream>& streams, const float* q, int64_t first,
                   const Part& part, Work& work, float* out);
  std::vector<Region> regions(const std::vector<Stream>& streams, int64_t kv_head,
                              int64_t tokens) const;
  const Inputs& query_inputs(const float* q, const Part& part, const Region& region, Work& work);
  void mix(const Region& region, int64_t rows, int64_t stride, Work& work);
  void mix_group(const Region& region, int64_t group, int64_t rows, int64_t stride, Work& work);

  const Isa& isa_;
  Pool& pool_;
  AttentionShape shape_;
  std::vector<Work> works_;  // one per thread
};

}  // namespace edgeqat
