// The statements of a template. jinja_evaluation.cc has the expressions.

#include "jinja_template.h"

namespace edgeqat {
namespace {

constexpr std::chrono::seconds kLongest(20);
constexpr int64_t kMostSteps = 1 << 20;  // a long conversation needs some thousand

}  // namespace

using Kind = JinjaStatement::Kind;

std::string JinjaTemplate::render(const Value::Dict& context) const {
  return JinjaRendering(context).text(body_);
}

std::string JinjaRendering::text(const JinjaBody& body) {
  run(body);
  return std::move(out_);
}

void JinjaRendering::tick() {
  if (++steps_ > kMostSteps || std::chrono::steady_clock::now() - start_ > kLongest)
    fail_template("it takes too long");
}

JinjaRendering::Flow JinjaRendering::run(const JinjaBody& body) {
  for (const JinjaStatement& statement : body) {
    const Flow flow = run(statement);
    if (flow != Flow::on) return flow;
  }
  return Flow::on;
}

JinjaRendering::Flow JinjaRendering::run(const JinjaStatement& statement) {
  tick();
  switch (statement.kind) {
    case Kind::text: out_ += statement.text; break;
    case Kind::output: out_ += evaluate(*statement.value).shown(); break;
    case Kind::assign: assign(statement, evaluate(*statement.value)); break;
    case Kind::block_assign:
      assign(statement, Value::string(captured(statement.branches[0].body)));
      break;
    case Kind::loop: return run_loop(statement);
    case Kind::leave: return Flow::leave;
    case Kind::skip: return Flow::skip;
    case Kind::condition:
      for (const JinjaStatement::Branch& branch : statement.branches)
        if (!branch.condition || evaluate(*branch.condition).truth()) return run(branch.body);
  }
  check_template_text(out_.size());
  return Flow::on;
}

std::string JinjaRendering::captured(const JinjaBody& body) {
  std::string outer;
  outer.swap(out_);
  scopes_.emplace_back();
  run(body);
  scopes_.pop_back();
  outer.swap(out_);
  return outer;
}

void JinjaRendering::set(const std::string& name, const Value& value) {
  if (value.is(Value::Kind::generator))
    lack_template("'" + name + "' for a result of map, select or reverse without |list");
  for (auto& member : scopes_.back())
    if (member.first == name) {
      member.second = value;
      return;
    }
  scopes_.back().emplace_back(name, value);
}

void JinjaRendering::bind(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) return set(targets[0], value);
  const Value::List parts = jinja_elements(value);
  if (parts.size() != targets.size())
    fail_template("'" + targets[0] + "' and those behind it do not fit the value");
  for (std::size_t i = 0; i < targets.size(); ++i) set(targets[i], parts[i]);
}

void JinjaRendering::assign(const JinjaStatement& statement, const Value& value) {
  if (statement.space.empty()) return bind(statement.targets, value);
  const Value space = named(statement.space);
  if (!space.is(Value::Kind::space))
    fail_template("'" + statement.space + "' is no namespace, so nothing in it can be set");
  space.assign(statement.targets[0], value);
}

JinjaRendering::Flow JinjaRendering::run_loop(const JinjaStatement& statement) {
  Value::List values = jinja_elements(evaluate(*statement.value));
  if (statement.filter) {
    Value::List kept;
    for (const Value& value : values) {
      scopes_.emplace_back();
      bind(statement.targets, value);
      if (evaluate(*statement.filter).truth()) kept.push_back(value);
      scopes_.pop_back();
    }
    values.swap(kept);
  }
  if (values.empty() && statement.branches.size() > 1) return run(statement.branches[1].body);
  const int64_t count = int64_t(values.size());
  for (int64_t i = 0; i < count; ++i) {
    tick();
    Value::Dict loop = {
        {"index", Value::integer(i + 1)},     {"index0", Value::integer(i)},
        {"first", Value::boolean(i == 0)},    {"last", Value::boolean(i + 1 == count)},
        {"length", Value::integer(count)},    {"revindex", Value::integer(count - i)},
        {"revindex0", Value::integer(count - i - 1)},
    };
    if (i > 0) loop.emplace_back("previtem", values[std::size_t(i - 1)]);
    if (i + 1 < count) loop.emplace_back("nextitem", values[std::size_t(i + 1)]);
    scopes_.emplace_back();
    set("loop", Value::space(std::move(loop)));
    bind(statement.targets, values[std::size_t(i)]);
    const Flow flow = run(statement.branches[0].body);
    scopes_.pop_back();
    if (flow == Flow::leave) break;
  }
  return Flow::on;
}

}  // namespace edgeqat
