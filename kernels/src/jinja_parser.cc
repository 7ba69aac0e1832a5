// Reads the statements of a template.

#include <utility>

#include "jinja_expression_parser.h"

namespace edgeqat {
namespace {

constexpr int kDeepest = 64;
constexpr std::size_t kLargestSource = 1 << 20;

class Parser : public JinjaExpressionParser {
 public:
  using JinjaExpressionParser::JinjaExpressionParser;

  JinjaBody whole() {
    JinjaBody body = statements({});
    if (current().kind != Kind::end) lack_template("the block '" + current().text + "'");
    return body;
  }

 private:
  using Words = std::vector<const char*>;

  bool at_block(const char* word) const {
    return current().kind == Kind::block_begin && tokens_[at_ + 1].kind == Kind::name &&
           tokens_[at_ + 1].text == word;
  }

  void end_block() {
    if (current().kind != Kind::block_end) unexpected();
    ++at_;
  }

  // Up to a block of one of these names.
  JinjaBody statements(const Words& ends) {
    if (++deep_ > kDeepest) fail_template("its blocks are nested too deeply");
    JinjaBody body;
    while (current().kind != Kind::end) {
      bool ended = false;
      for (const char* word : ends) ended |= at_block(word);
      if (ended) {
        --deep_;
        return body;
      }
      statement(body);
    }
    if (!ends.empty()) fail_template(std::string("the block '") + ends.back() + "' is missing");
    --deep_;
    return body;
  }

  void statement(JinjaBody& body) {
    JinjaStatement made;
    if (current().kind == Kind::text) {
      made.text = tokens_[at_++].text;
    } else if (current().kind == Kind::output_begin) {
      ++at_;
      made.kind = JinjaStatement::Kind::output;
      made.value = tuple();
      if (current().kind != Kind::output_end) unexpected();
      ++at_;
    } else {
      ++at_;
      if (block(made, body)) return;
    }
    body.push_back(std::move(made));
  }

  // true: the block only groups statements, which are in the body already.
  bool block(JinjaStatement& made, JinjaBody& body) {
    const std::string word = name();
    if (word == "if") {
      condition(made);
    } else if (word == "for") {
      loop(made);
    } else if (word == "set") {
      assign(made);
    } else if (word == "break" || word == "continue") {
      if (!loops_) fail_template("'" + word + "' stands outside of a loop");
      made.kind = word == "break" ? JinjaStatement::Kind::leave : JinjaStatement::Kind::skip;
      end_block();
    } else if (word == "generation") {  // marks what a model writes; nothing to us
      end_block();
      for (JinjaStatement& inner : statements({"endgeneration"})) body.push_back(std::move(inner));
      at_ += 2;
      end_block();
      return true;
    } else {
      lack_template("the block '" + word + "'");
    }
    return false;
  }

  void condition(JinjaStatement& made) {
    made.kind = JinjaStatement::Kind::condition;
    for (bool otherwise = false;;) {
      JinjaStatement::Branch branch;
      if (!otherwise) branch.condition = tuple();
      end_block();
      branch.body = statements(otherwise ? Words{"endif"} : Words{"elif", "else", "endif"});
      made.branches.push_back(std::move(branch));
      ++at_;
      if (take_name("endif")) return end_block();
      otherwise = take_name("else");
      if (!otherwise) ++at_;  // elif
    }
  }

  void loop(JinjaStatement& made) {
    made.kind = JinjaStatement::Kind::loop;
    const bool bracket = take_symbol("(");
    do made.targets.push_back(name());
    while (take_symbol(","));
    if (bracket) expect_symbol(")");
    if (!take_name("in")) unexpected();
    made.value = expression(false);
    if (take_name("if")) made.filter = expression();
    if (at_name("recursive")) lack_template("a loop that is recursive");
    end_block();
    ++loops_;
    made.branches.emplace_back();
    made.branches[0].body = statements({"else", "endfor"});
    --loops_;
    ++at_;
    if (take_name("else")) {
      end_block();
      made.branches.emplace_back();
      made.branches[1].body = statements({"endfor"});
      ++at_;
    }
    if (!take_name("endfor")) unexpected();
    end_block();
  }

  void assign(JinjaStatement& made) {
    made.targets.push_back(name());
    if (take_symbol(".")) {
      made.space = made.targets[0];
      made.targets[0] = name();
    }
    while (take_symbol(",")) made.targets.push_back(name());
    if (take_symbol("=")) {
      made.kind = JinjaStatement::Kind::assign;
      made.value = tuple();
      return end_block();
    }
    if (made.targets.size() > 1) unexpected();
    if (at_symbol("|")) lack_template("a filter of a block 'set'");
    made.kind = JinjaStatement::Kind::block_assign;
    end_block();
    made.branches.emplace_back();
    made.branches[0].body = statements({"endset"});
    at_ += 2;
    end_block();
  }

  int deep_ = 0, loops_ = 0;
};

}  // namespace

JinjaBody parse_jinja(std::string_view source) {
  if (source.size() > kLargestSource) fail_template("it is too long");
  return Parser(jinja_tokens(source)).whole();
}

}  // namespace edgeqat
