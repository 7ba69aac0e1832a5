#include "jinja_expression_parser.h"

#include <algorithm>
#include <charconv>
#include <set>

namespace edgeqat {
namespace {

constexpr int kDeepest = 100;

}  // namespace

using Expression = JinjaExpression::Kind;

bool JinjaExpressionParser::at_name(const char* word) const {
  return current().kind == Kind::name && current().text == word;
}

bool JinjaExpressionParser::at_symbol(const char* word) const {
  return current().kind == Kind::symbol && current().text == word;
}

bool JinjaExpressionParser::take_name(const char* word) { return at_name(word) && (++at_, true); }

bool JinjaExpressionParser::take_symbol(const char* word) {
  return at_symbol(word) && (++at_, true);
}

void JinjaExpressionParser::expect_symbol(const char* word) {
  if (!take_symbol(word)) unexpected();
}

std::string JinjaExpressionParser::name() {
  if (current().kind != Kind::name) unexpected();
  return tokens_[at_++].text;
}

void JinjaExpressionParser::unexpected() const {
  const bool ends = current().text.empty();
  fail_template(ends ? "a tag ends too early"
                     : "'" + current().text.substr(0, 80) + "' stands where it may not");
}

JinjaExpressionParser::Node JinjaExpressionParser::made(Expression kind, std::string text) {
  Node node = std::make_unique<JinjaExpression>();
  node->kind = kind;
  node->text = std::move(text);
  return node;
}

void JinjaExpressionParser::add(Node& node, Node part) {
  if (part) node->depth = std::max(node->depth, part->depth + 1);
  if (node->depth > kDeepest) fail_template("its expressions are nested too deeply");
  node->parts.push_back(std::move(part));
}

JinjaExpressionParser::Node JinjaExpressionParser::tuple() {
  Node first = expression();
  if (!at_symbol(",")) return first;
  Node all = made(Expression::tuple);
  add(all, std::move(first));
  while (take_symbol(","))
    if (!at_symbol(")") && current().kind != Kind::block_end) add(all, expression());
  return all;
}

JinjaExpressionParser::Node JinjaExpressionParser::expression(bool with_choice) {
  if (++nested_ > kDeepest) fail_template("its expressions are nested too deeply");
  Node value = either();
  while (with_choice && take_name("if")) {
    Node choice = made(Expression::choice);
    add(choice, std::move(value));
    add(choice, either());
    add(choice, take_name("else") ? expression() : nullptr);
    value = std::move(choice);
  }
  --nested_;
  return value;
}

JinjaExpressionParser::Node JinjaExpressionParser::either() {
  Node left = both();
  while (take_name("or")) {
    Node node = made(Expression::either);
    add(node, std::move(left));
    add(node, both());
    left = std::move(node);
  }
  return left;
}

JinjaExpressionParser::Node JinjaExpressionParser::both() {
  Node left = inverse();
  while (take_name("and")) {
    Node node = made(Expression::both);
    add(node, std::move(left));
    add(node, inverse());
    left = std::move(node);
  }
  return left;
}

JinjaExpressionParser::Node JinjaExpressionParser::inverse() {
  if (!take_name("not")) return compare();
  if (++nested_ > kDeepest) fail_template("its expressions are nested too deeply");
  Node node = made(Expression::inverse);
  add(node, inverse());
  --nested_;
  return node;
}

JinjaExpressionParser::Node JinjaExpressionParser::compare() {
  static const std::set<std::string> symbols = {"==", "!=", "<", "<=", ">", ">="};
  Node left = sum();
  Node node;
  for (;;) {
    std::string word;
    if (current().kind == Kind::symbol && symbols.count(current().text)) {
      word = tokens_[at_++].text;
    } else if (take_name("in")) {
      word = "in";
    } else if (at_name("not") && tokens_[at_ + 1].kind == Kind::name &&
               tokens_[at_ + 1].text == "in") {
      at_ += 2;
      word = "not in";
    } else {
      return node ? std::move(node) : std::move(left);
    }
    if (!node) {
      node = made(Expression::compare);
      add(node, std::move(left));
    }
    node->operators.push_back(word);
    add(node, sum());
  }
}

JinjaExpressionParser::Node JinjaExpressionParser::sum() {
  Node left = joined();
  while (at_symbol("+") || at_symbol("-")) {
    Node node = made(Expression::binary, tokens_[at_++].text);
    add(node, std::move(left));
    add(node, joined());
    left = std::move(node);
  }
  return left;
}

JinjaExpressionParser::Node JinjaExpressionParser::joined() {
  Node left = product();
  while (take_symbol("~")) {
    Node node = made(Expression::binary, "~");
    add(node, std::move(left));
    add(node, product());
    left = std::move(node);
  }
  return left;
}

JinjaExpressionParser::Node JinjaExpressionParser::product() {
  Node left = power();
  while (at_symbol("*") || at_symbol("/") || at_symbol("//") || at_symbol("%")) {
    Node node = made(Expression::binary, tokens_[at_++].text);
    add(node, std::move(left));
    add(node, power());
    left = std::move(node);
  }
  return left;
}

JinjaExpressionParser::Node JinjaExpressionParser::power() {
  Node value = unary(true);
  if (at_symbol("**")) lack_template("the operator **");
  return value;
}

JinjaExpressionParser::Node JinjaExpressionParser::unary(bool with_filters) {
  Node node;
  if (at_symbol("-") || at_symbol("+")) {
    if (++nested_ > kDeepest) fail_template("its expressions are nested too deeply");
    node = made(Expression::sign, tokens_[at_++].text);
    add(node, unary(false));
    --nested_;
  } else {
    node = postfix(primary());
  }
  return with_filters ? filters(std::move(node)) : std::move(node);
}

JinjaExpressionParser::Node JinjaExpressionParser::primary() {
  const JinjaToken token = current();
  Node node = made(Expression::constant);
  if (token.kind == Kind::name) {
    ++at_;
    if (token.text == "true" || token.text == "True") node->value = Value::boolean(true);
    else if (token.text == "false" || token.text == "False") node->value = Value::boolean(false);
    else if (token.text == "none" || token.text == "None") node->value = Value::none();
    else return made(Expression::name, token.text);
  } else if (token.kind == Kind::string) {
    std::string text;
    while (current().kind == Kind::string) text += tokens_[at_++].text;
    node->value = Value::string(text);
  } else if (token.kind == Kind::integer) {
    int64_t number = 0;
    const char* end = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), end, number).ec != std::errc())
      lack_template("a number as large as " + token.text);
    ++at_;
    node->value = Value::integer(number);
  } else if (token.kind == Kind::real) {
    double number = 0;
    std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
    ++at_;
    node->value = Value::real(number);
  } else if (take_symbol("(")) {
    node = at_symbol(")") ? made(Expression::tuple) : tuple();
    expect_symbol(")");
  } else if (take_symbol("[")) {
    return bracketed();
  } else if (take_symbol("{")) {
    return dict();
  } else {
    unexpected();
  }
  return node;
}

JinjaExpressionParser::Node JinjaExpressionParser::bracketed() {
  Node node = made(Expression::list);
  while (!take_symbol("]")) {
    add(node, expression());
    if (!at_symbol("]")) expect_symbol(",");
  }
  return node;
}

JinjaExpressionParser::Node JinjaExpressionParser::dict() {
  Node node = made(Expression::dict);
  while (!take_symbol("}")) {
    add(node, expression());
    expect_symbol(":");
    add(node, expression());
    if (!at_symbol("}")) expect_symbol(",");
  }
  return node;
}

JinjaExpressionParser::Node JinjaExpressionParser::postfix(Node value) {
  for (;;) {
    if (take_symbol(".")) {
      const bool index = current().kind == Kind::integer;
      Node node = made(index ? Expression::item : Expression::attribute);
      add(node, std::move(value));
      if (index) add(node, primary());
      else node->text = name();
      value = std::move(node);
    } else if (take_symbol("[")) {
      value = item(std::move(value));
    } else if (at_symbol("(")) {
      Node node = made(Expression::call);
      add(node, std::move(value));
      arguments(node);
      value = std::move(node);
    } else {
      return value;
    }
  }
}

JinjaExpressionParser::Node JinjaExpressionParser::item(Node value) {
  Node node = made(Expression::item);
  add(node, std::move(value));
  Node bounds[3];
  int colons = 0;
  while (!take_symbol("]")) {
    if (take_symbol(":")) {
      if (++colons > 2) unexpected();
    } else {
      if (bounds[colons]) unexpected();
      bounds[colons] = expression();
    }
  }
  if (!colons && !bounds[0]) unexpected();
  if (colons) node->kind = Expression::slice;
  for (int i = 0; i <= (colons ? 2 : 0); ++i) add(node, std::move(bounds[i]));
  return node;
}

void JinjaExpressionParser::arguments(Node& node) {
  expect_symbol("(");
  while (!take_symbol(")")) {
    const JinjaToken& next = tokens_[at_ + 1];
    if (at_symbol("*") || at_symbol("**")) lack_template("an argument with *");
    if (current().kind == Kind::name && next.kind == Kind::symbol && next.text == "=") {
      const std::string key = name();
      expect_symbol("=");
      Node value = expression();
      node->depth = std::max(node->depth, value->depth + 1);
      node->named.emplace_back(key, std::move(value));
    } else {
      add(node, expression());
    }
    if (!at_symbol(")")) expect_symbol(",");
  }
}

JinjaExpressionParser::Node JinjaExpressionParser::filters(Node value) {
  for (;;) {
    if (take_symbol("|")) {
      Node node = made(Expression::filter, name());
      add(node, std::move(value));
      if (at_symbol("(")) arguments(node);
      value = std::move(node);
    } else if (take_name("is")) {
      value = test(std::move(value));
    } else if (at_symbol("(")) {
      lack_template("a call of a filtered value");
    } else {
      return value;
    }
  }
}

JinjaExpressionParser::Node JinjaExpressionParser::test(Node value) {
  static const std::set<std::string> with_value = {"divisibleby", "equalto", "eq",       "ne",
                                                   "in",          "sameas",  "lessthan", "lt",
                                                   "greaterthan", "gt",      "le",       "ge"};
  const bool inverted = take_name("not");
  Node node = made(Expression::test, name());
  add(node, std::move(value));
  if (at_symbol("(")) arguments(node);
  else if (with_value.count(node->text)) add(node, postfix(primary()));
  if (!inverted) return node;
  Node turned = made(Expression::inverse);
  add(turned, std::move(node));
  return turned;
}

}  // namespace edgeqat
