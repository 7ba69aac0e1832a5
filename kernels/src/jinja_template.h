// Jinja templates as chat templates use them: a subset, with the results of Jinja and of what
// transformers adds to it. Constructs outside of the subset are an Unsupported that names them.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "jinja_builtins.h"
#include "jinja_syntax.h"

namespace edgeqat {

class JinjaTemplate {
 public:
  explicit JinjaTemplate(std::string_view source) : body_(parse_jinja(source)) {}

  // The text for values of these names.
  std::string render(const Value::Dict& context) const;

 private:
  JinjaBody body_;
};

// One rendering.
class JinjaRendering {
 public:
  explicit JinjaRendering(const Value::Dict& context) : scopes_{context} {}

  std::string text(const JinjaBody& body);

 private:
  enum class Flow { on, leave, skip };  // what a statement does to its loop

  Flow run(const JinjaBody& body);
  Flow run(const JinjaStatement& statement);
  Flow run_loop(const JinjaStatement& statement);
  void assign(const JinjaStatement& statement, const Value& value);
  void set(const std::string& name, const Value& value);
  void bind(const std::vector<std::string>& targets, const Value& value);
  std::string captured(const JinjaBody& body);

  Value evaluate(const JinjaExpression& expression);
  Value named(const std::string& name) const;
  Value sliced(const JinjaExpression& expression);
  Value called(const JinjaExpression& expression);
  Value compared(const JinjaExpression& expression);
  static Value computed(const std::string& sign, const Value& left, const Value& right);
  JinjaArguments arguments(const JinjaExpression& expression);
  void tick();

  std::vector<Value::Dict> scopes_;  // the innermost one last
  std::string out_;
  int64_t steps_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace edgeqat
