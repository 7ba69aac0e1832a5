// The section `model` of tokenizer.json. Its vocabulary and merges are read in two passes, so that
// neither their order in the file nor their number matters.

#include <cmath>
#include <map>

#include "bpe.h"
#include "error.h"
#include "json_reader.h"
#include "tokenizer.h"
#include "unigram.h"

namespace edgeqat {
namespace {

constexpr char kFile[] = "tokenizer.json";

struct ModelFile {
  std::map<std::string, Json> settings;
  Vocabulary vocabulary;
  std::vector<double> scores;  // of a Unigram
  bool scored = false, merges = false;

  const Json* find(const char* key) const {
    const auto found = settings.find(key);
    return found == settings.end() || found->second.is_null() ? nullptr : &found->second;
  }
  bool flag(const char* key) const {
    const Json* found = find(key);
    return found && found->boolean();
  }
};

// Calls each(key, reader) for the members of `model`; it must read the value.
template <class Each>
void model_members(std::string_view text, const Each& each) {
  JsonReader reader(text, kFile);
  bool found = false;
  reader.members([&](const std::string& section) {
    if (section != "model") return reader.skip();
    if (found) throw Error(std::string(kFile) + ": 'model' is there twice");
    found = true;
    reader.members([&](const std::string& key) { each(key, reader); });
  });
  if (!found) throw Error(std::string(kFile) + ": 'model' is missing; copy the folder again");
}

int32_t id_of(JsonReader& reader, const std::string& token) {
  return int32_t(reader.value(token).integer(0, kMostTokens - 1));
}

void read_vocabulary(JsonReader& reader, ModelFile& out) {
  if (out.vocabulary.size()) throw Error("model.vocab: it is there twice; copy the folder again");
  out.scored = reader.peek() == '[';
  if (!out.scored) {
    reader.members([&](const std::string& token) {
      if (out.vocabulary.find(token) != kNoToken)
        throw Error("model.vocab: a token is there twice; copy the folder again");
      out.vocabulary.add(token, id_of(reader, token));
    });
    return;
  }
  reader.elements([&] {
    const Json pair = reader.value("model.vocab");
    if (pair.array().size() != 2) throw Error("model.vocab: a token without a score");
    out.vocabulary.add(pair.array()[0].string(), int32_t(out.scores.size()));
    out.scores.push_back(pair.array()[1].number());
  });
}

// "left right", or ["left", "right"].
void read_merge(JsonReader& reader, Bpe& bpe) {
  if (reader.peek() == '[') {
    std::vector<std::string> pair;
    reader.elements([&] { pair.push_back(reader.string()); });
    if (pair.size() != 2) throw Error("model.merges: one has not two parts; copy the folder again");
    return bpe.add_merge(pair[0], pair[1]);
  }
  const std::string line = reader.string();
  const std::size_t space = line.find(' ');
  if (space == line.npos || line.find(' ', space + 1) != line.npos)
    throw Error("model.merges: one has not two parts; copy the folder again");
  bpe.add_merge(line.substr(0, space), line.substr(space + 1));
}

std::unique_ptr<TokenModel> bpe_of(std::string_view text, ModelFile& file) {
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (file.find(name) && !file.find(name)->string().empty())
      throw Unsupported(std::string("model.") + name + ": it is not supported by the engine; "
                        "encode in Python");
  if (file.find("dropout") && file.find("dropout")->number() != 0)
    throw Unsupported("model.dropout: it makes ids random; encode in Python");
  Bpe::Settings settings;
  if (const Json* unknown = file.find("unk_token")) {
    settings.unknown = true;
    settings.unknown_token = unknown->string();
  }
  settings.fuse_unknown = file.flag("fuse_unk");
  settings.byte_fallback = file.flag("byte_fallback");
  settings.ignore_merges = file.flag("ignore_merges");
  auto bpe = std::make_unique<Bpe>(std::move(file.vocabulary), settings);
  model_members(text, [&](const std::string& key, JsonReader& reader) {
    if (key != "merges") return reader.skip();
    reader.elements([&] { read_merge(reader, *bpe); });
  });
  return bpe;
}

std::unique_ptr<TokenModel> unigram_of(ModelFile& file) {
  int32_t unknown = kNoToken;
  if (const Json* id = file.find("unk_id"))
    unknown = int32_t(id->integer(0, int64_t(file.scores.size()) - 1));
  return std::make_unique<Unigram>(std::move(file.vocabulary), std::move(file.scores), unknown,
                                   file.flag("byte_fallback"));
}

}  // namespace

std::unique_ptr<TokenModel> read_token_model(std::string_view text) {
  ModelFile file;
  model_members(text, [&](const std::string& key, JsonReader& reader) {
    if (key == "vocab") return read_vocabulary(reader, file);
    file.merges |= key == "merges";
    if (key == "merges") return reader.skip();
    file.settings[key] = reader.value("model." + key);
  });
  if (!file.vocabulary.size())
    throw Error("model.vocab: there are no tokens; copy the folder again");
  const Json* type = file.find("type");
  const std::string name = type ? type->string() : file.merges ? "BPE" : "";
  if (name == "BPE" && !file.scored && file.merges) return bpe_of(text, file);
  if (name == "Unigram" && file.scored) return unigram_of(file);
  throw Unsupported("model: '" + name.substr(0, 80) + "' is not supported by the engine; encode in "
                    "Python");
}

}  // namespace edgeqat
