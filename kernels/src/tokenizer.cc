#include "tokenizer.h"

#include "error.h"
#include "json_reader.h"
#include "tensors.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr char kFile[] = "tokenizer.json";
constexpr std::size_t kLargestFile = std::size_t(1) << 28, kLongestText = std::size_t(1) << 30;

}  // namespace

Tokenizer Tokenizer::open(const std::string& folder) {
  return parse(read_text(folder + "/" + kFile, kLargestFile));
}

Tokenizer Tokenizer::parse(std::string_view text) {
  if (!is_utf8(text)) throw Error(std::string(kFile) + ": it is not UTF-8; copy the folder again");
  Tokenizer made;
  Json added, normalizer;
  JsonReader reader(text, kFile);
  reader.members([&](const std::string& key) {
    if (key == "model") return reader.skip();
    const Json value = reader.value(key);
    if (value.is_null()) return;
    if (key == "added_tokens") added = value;
    else if (key == "normalizer") normalizer = value;
    else if (key == "pre_tokenizer") made.pre_tokenizer_ = PreTokenizer(value);
    else if (key == "post_processor") made.post_processor_ = PostProcessor(value);
    else if (key == "decoder") made.decoder_ = TokenDecoder(value);
  });
  reader.finish();
  if (!normalizer.is_null()) made.normalizer_ = Normalizer(normalizer);
  made.model_ = read_token_model(text);
  if (!added.is_null())
    made.added_ = AddedTokens(added, made.model_->vocabulary(), made.normalizer_);
  return made;
}

std::vector<int32_t> Tokenizer::encode(std::string_view given, bool special) {
  if (given.size() > kLongestText) throw Error("text: it is too long; encode it in parts");
  const std::string text = sound_utf8(given);
  std::vector<int32_t> ids;
  for (const AddedTokens::Segment& outer : added_.cut(text, false)) {
    if (outer.id != kNoToken) {
      ids.push_back(outer.id);
      continue;
    }
    bool first = outer.begin == 0;
    const std::string normalized =
        normalizer_.apply(text.substr(outer.begin, outer.end - outer.begin), first);
    for (const AddedTokens::Segment& inner : added_.cut(normalized, true)) {
      if (inner.id != kNoToken) ids.push_back(inner.id);
      else encode_text(std::string_view(normalized).substr(inner.begin, inner.end - inner.begin),
                       first && inner.begin == 0, ids);
    }
  }
  return special ? post_processor_.apply(ids) : ids;
}

void Tokenizer::encode_text(std::string_view text, bool first, std::vector<int32_t>& ids) {
  Pieces pieces{std::string(text), {{0, text.size(), first}}};
  pre_tokenizer_.apply(pieces);
  for (const Piece& piece : pieces.all) model_->encode(pieces.view(piece), ids);
}

std::string Tokenizer::decode(const int32_t* ids, std::size_t count, bool special) const {
  TokenDecoder::Tokens tokens;
  for (std::size_t i = 0; i < count; ++i) {
    if (!special && added_.special(ids[i])) continue;
    if (const std::string* token = added_.shown(ids[i])) tokens.push_back(*token);
    else if (model_->vocabulary().has(ids[i]))
      tokens.emplace_back(model_->vocabulary().token(ids[i]));
  }
  return decoder_.text(std::move(tokens));
}

}  // namespace edgeqat
