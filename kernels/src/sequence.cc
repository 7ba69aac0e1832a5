#include "sequence.h"

#include <string>

#include "error.h"
#include "inputs.h"

namespace edgeqat {
namespace {

int64_t checked_context(const Config& config, int64_t wanted) {
  if (wanted < 0 || wanted > config.positions)
    throw Error("context: " + std::to_string(wanted) + " is not within the model's " +
                std::to_string(config.positions) + " positions; choose a shorter one");
  return wanted ? wanted : config.positions;
}

}  // namespace

Sequence::Sequence(const Config& config, int64_t context)
    : context_(checked_context(config, context)),
      widths_(config, context_),
      streams_(std::size_t(config.layers)) {
  std::vector<StreamShape> shapes;
  if (widths_.two_streams())
    shapes.push_back({kHighBits, config.head_dim, round_up(widths_.most_high(), kInputPad)});
  shapes.push_back({config.kv_bits, config.head_dim, round_up(context_, kInputPad)});
  int64_t bytes = 0;
  for (const StreamShape& shape : shapes) bytes += shape.bytes();
  // every stream begins with the first tokens: huge pages would hold all of a context for them
  cache_ = Buffer<uint8_t>(bytes * config.kv_heads * config.layers, Pages::small);
  uint8_t* memory = cache_.data();
  for (auto& layer : streams_)
    for (int64_t head = 0; head < config.kv_heads; ++head)
      for (const StreamShape& shape : shapes) {
        layer.emplace_back(shape, memory);
        memory += shape.bytes();
      }
}

void Sequence::rewind(int64_t position) {
  if (position < 0 || position > position_)
    throw Error("position: " + std::to_string(position) + " is not within the " +
                std::to_string(position_) + " tokens so far");
  position_ = position;
  const bool two = widths_.two_streams();
  for (std::size_t layer = 0; layer < streams_.size(); ++layer) {
    const int64_t high = two ? widths_.kept_high(int64_t(layer), position) : 0;
    for (std::size_t i = 0; i < streams_[layer].size(); ++i)
      streams_[layer][i].truncate(two && i % 2 == 0 ? high : position - high);
  }
}

}  // namespace edgeqat
