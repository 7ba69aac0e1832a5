#include "post_processor.h"

#include <string>

#include "error.h"
#include "vocabulary.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostAround = 1024;  // ids

int32_t id_of(const Json& json) { return int32_t(json.integer(0, kMostTokens - 1)); }

// The id of a token that is given as ["<s>", 1].
int32_t id_of_pair(const Json& json) {
  if (json.array().size() != 2)
    throw Error("post_processor: a token and its id were expected; copy the folder again");
  return id_of(json.array()[1]);
}

}  // namespace

void PostProcessor::add(const Json& json) {
  const std::string type = json.at("type").string();
  if (type == "Sequence") {
    for (const Json& step : json.at("processors").array()) add(step);
  } else if (type == "TemplateProcessing") {
    add_template(json);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    before_.insert(before_.begin(), id_of_pair(json.at("cls")));
    behind_.push_back(id_of_pair(json.at("sep")));
  } else if (type != "ByteLevel") {
    throw Unsupported("post_processor: '" + type.substr(0, 80) +
                      "' is not supported by the engine; encode in Python");
  }
  if (before_.size() + behind_.size() > kMostAround)
    throw Error("post_processor: it adds too many tokens");
}

void PostProcessor::add_template(const Json& json) {
  const Json* tokens = json.find("special_tokens");
  std::vector<int32_t> before, behind;
  bool text = false;
  for (const Json& item : json.at("single").array()) {
    if (const Json* sequence = item.find("Sequence")) {
      if (text || sequence->at("id").string() != "A")
        throw Unsupported("post_processor.single: it holds more than one text; encode in Python");
      text = true;
      continue;
    }
    const std::string& name = item.at("SpecialToken").at("id").string();
    if (!tokens) throw Error("post_processor.special_tokens: there are none");
    for (const Json& id : tokens->at(name).at("ids").array())
      (text ? behind : before).push_back(id_of(id));
  }
  if (!text) throw Unsupported("post_processor.single: it holds no text; encode in Python");
  before_.insert(before_.begin(), before.begin(), before.end());
  behind_.insert(behind_.end(), behind.begin(), behind.end());
}

std::vector<int32_t> PostProcessor::apply(const std::vector<int32_t>& ids) const {
  std::vector<int32_t> all = before_;
  all.insert(all.end(), ids.begin(), ids.end());
  all.insert(all.end(), behind_.begin(), behind_.end());
  return all;
}

}  // namespace edgeqat
