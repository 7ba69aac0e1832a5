"""Templates of few constructs each, and constructs that the engine refuses by name."""

from __future__ import annotations

# Over `messages` of [{role, content}, ...].
CONSTRUCTS = [
    "  {% if true %}\n  a\n  {% endif %}\n b {%- if true %} c {%- endif -%}  \n d\n\n",
    ("a{#- note -#}  b\n  {# note #}\nc {#+ x +#}\n{%+ if 1 %} d {% endif +%}\ne {{- 'f' -}} \n g"),
    "{{ [1, 2.5, 'a\\'b', \"it's\", none, true, {'k': [1e2 if false else 0.1]}] }}",
    "{{ {'a': 1, 'b': {'c': []}} | tojson }}{{ [1, 'é\\n\\u2028\"'] | tojson(indent=2) }}",
    (
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 * 3 - 1 + 4 }} "
        "{{ 1 ~ 2.0 ~ none }}"
    ),
    (
        "{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }}{{ ', ' if not loop.last }}"
        "{% endfor %}"
    ),
    (
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}"
        "no{% endfor %}"
    ),
    (
        "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% elif i > 5 %}{% break %}"
        "{% endif %}{{ i }}{% endfor %}"
    ),
    (
        "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>"
        "{{ loop.revindex }};{% endfor %}"
    ),
    (
        "{{ messages | map(attribute='role') | join('+') }} "
        "{{ messages | map(attribute='x', default='-') | list }}"
    ),
    (
        "{{ messages | selectattr('role', 'in', ['user']) | list | length }}"
        "{{ messages | rejectattr('tool_calls') | list | count }}"
    ),
    (
        "{{ 'a,b,,c'.split(',') }}{{ ' a  b c '.split() }}{{ 'a b c d'.split(' ', 2) }}"
        "{{ 'a  b c '.split(none, 1) }}"
    ),
    (
        "{{ 'xxaxx'.strip('x') ~ '|' ~ ' a '.lstrip() ~ '|' ~ ' a '.rstrip() }}{{ ' a ' | trim }}"
        "{{ (1,) }}{{ () }}{{ (1, 'a') + ('b', 2) }}{{ {'a': 1}.items() | list }}"
    ),
    (
        "{{ 'abc'[1:] ~ 'abc'[::-1] ~ 'abc'[-2] ~ 'abc'[5:] ~ 'äöü'[1:2] ~ ('äöü' | length) }} "
        "{{ [1,2,3,4][::-2] }}"
    ),
    (
        "{{ 'Ab É ß'.lower() }} {{ 'ab é' | upper }} {{ 'hello world-x' | title }} "
        "{{ 'hELLO' | capitalize }}"
    ),
    (
        "{{ x is defined }} {{ x is none }} {{ none is none }} {{ 'a' is string }} "
        "{{ 1 is number }} {{ {} is mapping }}"
    ),
    (
        "{{ x | default('d') }} {{ '' | default('e', true) }} {{ '' | d('f') }}|{{ x }}|"
        "{{ none }}|{{ messages[99] }}|"
    ),
    (
        "{% set ns = namespace(a=1, b='x') %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}"
        "{% set q = i %}{% endfor %}{{ ns.a }}{{ q is defined }}"
    ),
    "{% set x %}  a {{ 1 + 1 }}\n{% endset %}[{{ x }}]{% set a, b = 1, [2] %}{{ a }}{{ b }}",
    (
        "{{ 1 < 2 < 3 }} {{ 3 > 2 >= 3 }} {{ 'a' in 'abc' }} {{ 'z' not in ['a'] }} "
        "{{ not 1 == 2 }} {{ 'k' in {'k': 1} }}"
    ),
    (
        "{{ 1 if false else 2 if false else 3 }}{{ '' or 'b' }}{{ 'a' and 'c' }}{{ (1, 2)[0] }}"
        "{{ 'a' 'b' }}"
    ),
    (
        "{{ '3' | int + 4 }} {{ 'x' | int }} {{ 2.7 | int }} {{ '1.5' | float }} {{ -3 | abs }} "
        "{{ 5 is odd }} {{ 6 is divisibleby 3 }}"
    ),
    (
        "{{ 'aXbX'.replace('X', '-') }} {{ 'aXbX' | replace('X', '', 1) }} {{ 'abc'.find('c') }} "
        "{{ 'aaa'.count('a') }} {{ '-'.join(['a', 'b']) }}"
    ),
    (
        "{{ messages[0].get('role') }} {{ messages[0].get('x', 'y') }} "
        "{{ messages[0].keys() | list }} {{ messages[0]['x'] is defined }}"
    ),
    (
        "{{ [3, 1] + [2] }} {{ [1, 2] | first }} {{ [1, 2] | last }} "
        "{{ [1, 2] | reverse | list }} {{ 'abc' | list }} {{ 'abc' | reverse }}"
    ),
    (
        "{% if messages is iterable and messages is not string and messages is sequence %}"
        "{{ '%.2f' if false else 'x\\ty\\\\z' }}{% endif %}"
    ),
    (
        "{{ 'line \\\n goes on' }}{{ strftime_now('%Y-%m') }}{{ 1.0 }} "
        "{{ 1e20 if false else 123456789.123 }} {{ 0.00001 * 1 }} {{ 10000000000000000.0 * 10 }}"
    ),
]

UNSUPPORTED = {
    "the block 'macro'": "{% macro f() %}{% endmacro %}",
    "the block 'include'": "{% include 'x' %}",
    "the block 'call'": "{% call f() %}{% endcall %}",
    "the block 'filter'": "{% filter upper %}a{% endfilter %}",
    "the block 'raw'": "{% raw %}{{ a }}{% endraw %}",
    "the filter 'xmlattr'": "{{ {} | xmlattr }}",
    "the test 'escaped'": "{{ 1 is escaped }}",
    "the method 'format' of a string": "{{ '{}'.format(1) }}",
    "the method 'update' of a dict": "{{ {}.update({}) }}",
    "the method 'append' of a list": "{{ [].append(1) }}",
    "the function 'cycler'": "{{ cycler('a') }}",
    "the operator **": "{{ 2 ** 3 }}",
    "the operator % of a string": "{{ '%s' % 1 }}",
    "a loop that is recursive": "{% for x in [] recursive %}{% endfor %}",
    "a namespace inside another value": "{% set a = namespace() %}{% set a.b = a %}",
}
