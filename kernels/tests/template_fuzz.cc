// edgeqat-fuzz-chat [ROUNDS [SEED]]: mutated chat templates and messages. Each is an error of one
// line, or a text in valid UTF-8.

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "chat_template.h"
#include "error.h"
#include "expect.h"
#include "mutation.h"
#include "utf8.h"

namespace {

using namespace edgeqat;

constexpr const char* kTemplates[] = {
    R"({%- set ns = namespace(tool=true, last=messages|length - 1) %}
{{- bos_token }}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.tool and message.role == "user" and message.content is string and not
        (message.content.startswith('<a>') and message.content[1:-2:1] in ['x', 'y']) %}
        {%- set ns.tool = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{% for m in messages if m['role'] != 'system' %}
  {{ '<|' ~ m['role'] | upper ~ '|>\n' + (m.content | string | trim) + "\n" }}
  {%- if m.calls %}{% for k, v in m.calls.items() %}{{ k }}: {{ v | tojson(indent=2) }}{% endfor %}
  {% elif loop.last %}{{ m.content.split('</t>')[-1].lstrip('\n') | replace('a', 'bb') }}
  {% else %}{{ [1, 2.5, none, 'x', {'k': -3 // 2}] }}{% continue %}{% endif %}
{% else %}none{% endfor %}{# note #}
{% if add_generation_prompt is defined and add_generation_prompt -%} answer: {%- endif %})",
    R"({% for i in range(0, 9, 2) %}{{ loop.index }}{% if i > 5 %}{% break %}{% endif %}{% endfor %}
{% set x %}{{ messages | map(attribute='role') | join(', ') }}{% endset %}{{ x | title }}
{% set a, b = messages | selectattr('role', 'equalto', 'user') | list | first, 'é'.strip('e') %}
{{ a.get('content', 'z') if a is mapping else a | default('d', true) }}{{ b * 1 if false }}
{{ 1 < 2 <= 3 and 'u' not in 'abc' or raise_exception('no ' ~ 7 % 3 ~ 1.5e3) }}
{{ '%c'|length }}{{ strftime_now('%Y') }}
{{ '3' | int + 4.0 | float }}{{ dict(a=1) | items | list }})",
};
constexpr const char* kMessages[] = {
    R"([{"role": "system", "content": "S"}, {"role": "user", "content": "<a>x \u00e9</t>\n"},
{"role": "assistant", "content": "y", "calls": {"f": [1, 2.5, null, {"b": true}]}}])",
    R"([{"role": "user", "content": [{"type": "text", "text": "t"}]}])"};
const std::vector<std::string> kWords = {
    "trim", "upper", "lower", "messages", "message", "loop", "role", "content", "user", "ns", "x",
    "{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", "endfor", "endif", "else", "if", "not", "in",
    "is", "tojson", "range(999999)", "[::-1]", "[-9223372036854775808:]", "9223372036854775807",
    "\\n", "\\xe9", "\\ud800", "'", "(((((", "~", "+ 1", "//0", "%0", "* -1", "| list", "| join",
    ".items()", "namespace()", "none", "1e999", "\xff", "\xf0\x9f\x98\x80", ""};

// 1: it worked, 0: refused in one line, -1: neither.
int run(const std::string& source, const std::string& messages) {
  try {
    const ChatTemplate chat(source, {{"bos_token", Value::string("<s>")}});
    return is_utf8(chat.apply(messages, true)) ? 1 : -1;
  } catch (const Error& error) {
    const std::string line = error.what();
    return line.find(": ") == line.npos ? -1 : 0;
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 10000;
  Random random{count > 2 ? uint64_t(std::atoll(arguments[2])) : 1};
  for (const char* source : kTemplates)
    if (run(source, kMessages[0]) != 1) {
      std::fprintf(stderr, "error: a sound template is refused\n");
      return 2;
    }
  std::array<int64_t, 3> outcomes{};  // neither, refused, worked
  for (int64_t round = 0; round < rounds; ++round) {
    std::string source = pick(random, kTemplates), messages = pick(random, kMessages);
    for (int64_t edits = 1 + random.below(3) / 2; edits > 0; --edits)
      mutate(random, source, kWords);
    if (random.below(4) == 0) mutate(random, messages, kWords);
    const int outcome = run(sound_utf8(source), messages);
    ++outcomes[outcome + 1];
    if (outcome < 0) std::fprintf(stderr, "FAILED: round %lld\n", (long long)round);
  }
  std::printf("%lld templates: %lld worked, %lld refused in one line, %lld neither\n",
              (long long)rounds, (long long)outcomes[2], (long long)outcomes[1],
              (long long)outcomes[0]);
  return outcomes[0] ? 1 : 0;
}
