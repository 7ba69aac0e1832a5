#include "rope_config.h"

#include <cmath>

#include "error.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostDivisors = 4096;

double number(const Json& json, const char* key, double otherwise) {
  const Json* found = json.find(key);
  return found && !found->is_null() ? found->number() : otherwise;
}

// YaRN's temperature (2309.00071).
double temperature(double factor, double scale) {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

void read_yarn(const Json& values, RopeSpec& rope) {
  const double scale = number(values, "mscale", 0), all = number(values, "mscale_all_dim", 0);
  rope.attention_factor = scale != 0 && all != 0
                              ? temperature(rope.factor, scale) / temperature(rope.factor, all)
                              : temperature(rope.factor, 1);
  rope.beta_fast = number(values, "beta_fast", 32);
  rope.beta_slow = number(values, "beta_slow", 1);
  if (const Json* truncate = values.find("truncate")) rope.truncate = truncate->boolean();
  if (!(rope.beta_fast > 0 && rope.beta_slow > 0 && rope.theta > 1))
    throw Error("rope_parameters: beta_fast, beta_slow or rope_theta is out of range; copy the "
                "folder again");
}

// Frequencies of the positions that the model was trained on first: longer texts have others.
void read_longrope(const Json& values, RopeSpec& rope) {
  for (const Json& one : values.at("short_factor").array()) {
    rope.divisors.push_back(one.number());
    if (!(rope.divisors.back() > 0) || rope.divisors.size() > kMostDivisors)
      throw Error("rope_parameters: short_factor is out of range; copy the folder again");
  }
  if (rope.factor > 1)
    rope.attention_factor =
        std::sqrt(1 + std::log(rope.factor) / std::log(rope.original_positions));
}

}  // namespace

RopeSpec rope_of(const Json& values, int64_t positions) {
  RopeSpec rope;
  rope.theta = values.at("rope_theta").number();
  if (const Json* type = values.find("rope_type")) rope.type = type->string();
  rope.partial = number(values, "partial_rotary_factor", 1);
  if (!(rope.partial > 0 && rope.partial <= 1))
    throw Error("partial_rotary_factor: it is not within 0 and 1; copy the folder again");
  if (rope.type == "default") return rope;
  if (rope.type != "linear" && rope.type != "llama3" && rope.type != "yarn" &&
      rope.type != "longrope")
    throw Unsupported("rope_parameters: type '" + rope.type + "' runs in torch only");
  if (rope.type != "linear")
    rope.original_positions = values.at("original_max_position_embeddings").number();
  if (!(rope.original_positions > 1))
    throw Error("original_max_position_embeddings: it is out of range; copy the folder again");
  const bool inferred = rope.type == "yarn" || rope.type == "longrope";
  rope.factor = inferred ? number(values, "factor", double(positions) / rope.original_positions)
                         : values.at("factor").number();
  if (rope.type == "yarn") read_yarn(values, rope);
  if (rope.type == "longrope") read_longrope(values, rope);
  if (rope.type == "llama3") {
    rope.low_frequency = values.at("low_freq_factor").number();
    rope.high_frequency = values.at("high_freq_factor").number();
  }
  rope.attention_factor = number(values, "attention_factor", rope.attention_factor);
  rope.query_beta = number(values, "llama_4_scaling_beta", 0);
  if (!(rope.factor > 0 && rope.low_frequency > 0 && rope.high_frequency > rope.low_frequency))
    throw Error("rope_parameters: their factors are out of range; copy the folder again");
  return rope;
}

}  // namespace edgeqat
