// Reads the expressions of a template.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "jinja_lexer.h"
#include "jinja_syntax.h"

namespace edgeqat {

class JinjaExpressionParser {
 public:
  explicit JinjaExpressionParser(std::vector<JinjaToken> tokens) : tokens_(std::move(tokens)) {}

 protected:
  using Kind = JinjaToken::Kind;
  using Node = std::unique_ptr<JinjaExpression>;

  const JinjaToken& current() const { return tokens_[at_]; }
  bool at_name(const char* word) const;
  bool at_symbol(const char* word) const;
  bool take_name(const char* word);
  bool take_symbol(const char* word);
  void expect_symbol(const char* word);
  std::string name();
  [[noreturn]] void unexpected() const;

  Node expression(bool with_choice = true);
  Node tuple();  // an expression, or several with commas
  Node filters(Node value);

  std::vector<JinjaToken> tokens_;
  std::size_t at_ = 0;

 private:
  Node made(JinjaExpression::Kind kind, std::string text = "");
  void add(Node& node, Node part);
  Node either();
  Node both();
  Node inverse();
  Node compare();
  Node sum();
  Node joined();
  Node product();
  Node power();
  Node unary(bool with_filters);
  Node primary();
  Node bracketed();
  Node dict();
  Node postfix(Node value);
  Node item(Node value);
  Node test(Node value);
  void arguments(Node& node);

  int nested_ = 0;
};

}  // namespace edgeqat
