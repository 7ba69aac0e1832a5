"""Chat templates in C++: the text of transformers, byte for byte; constructs refused by name."""

from __future__ import annotations

import json

import pytest
import tiny
from chat_templates import TEMPLATES, conversations
from jinja_constructs import CONSTRUCTS, UNSUPPORTED
from marks import needs_kernels

from edgeqat.errors import FormatError
from edgeqat.native import UnsupportedModel
from edgeqat.native_tokenizer import NativeChat

pytestmark = needs_kernels


def pair(folder, source):
    """A tokenizer of transformers with this template, and ours from what it saves."""
    theirs = tiny.tokenizer()
    theirs.chat_template = source
    theirs.save_pretrained(folder)
    return theirs, NativeChat(folder)


def result(apply, *arguments, **options):
    """The text, or that there is none."""
    try:
        return apply(*arguments, **options)
    except Exception as error:
        assert (
            isinstance(error, FormatError)
            or type(error).__module__.startswith("jinja2")
            or (isinstance(error, TypeError))
        ), error
        return None


def compare(theirs, ours, messages, prompt):
    options = {"tokenize": False, "add_generation_prompt": prompt}
    expected = result(theirs.apply_chat_template, messages, **options)
    assert result(ours.apply, messages, prompt) == expected, messages
    return expected is not None


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name, tmp_path):
    theirs, ours = pair(tmp_path, TEMPLATES[name])
    made = [
        compare(theirs, ours, messages, number % 2 == 0)
        for number, messages in enumerate(conversations(50))
    ]
    assert sum(made) > 15


@pytest.mark.parametrize("source", CONSTRUCTS)
def test_a_construct_gives_the_text_of_jinja(source, tmp_path):
    theirs, ours = pair(tmp_path, source)
    for messages in conversations(4, seed=1):
        assert compare(theirs, ours, messages, False)


@pytest.mark.parametrize("construct", UNSUPPORTED)
def test_a_missing_construct_is_refused_by_name(construct, tmp_path):
    with pytest.raises(UnsupportedModel) as error:
        pair(tmp_path, UNSUPPORTED[construct])[1].apply([])
    assert str(error.value).startswith(f"chat template: {construct} is not supported")


def test_what_a_template_raises_is_the_error(tmp_path):
    _, ours = pair(tmp_path, "{{ raise_exception('roles must\n alternate') }}")
    with pytest.raises(FormatError, match=r"^chat template: roles must  alternate$"):
        ours.apply([])


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'a }}", "{{ (1 }}", "{% for x in y %}", "{% x"])
def test_a_broken_template_is_refused(source, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(FormatError, match=r"^chat template: "):
        NativeChat(tmp_path)


@pytest.mark.parametrize("listed", [False, True])
def test_the_template_of_the_settings(listed, tmp_path):
    source = "{{ bos_token }}{{ messages[0].content }}"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    settings = {"bos_token": {"content": "<s>"}, "chat_template": named if listed else source}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert NativeChat(tmp_path).apply([{"role": "user", "content": "a"}]) == "<s>a"


def test_a_folder_without_a_template_is_refused(tmp_path):
    with pytest.raises(FormatError, match="has none; name a chat model"):
        NativeChat(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{{ 1" + " + 1" * 5000 + " }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
    ],
    ids=["time", "text", "nested values", "brackets", "sums", "blocks"],
)
def test_what_would_not_end_is_refused(source, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(FormatError, match=r"^chat template: "):
        NativeChat(tmp_path).apply([])
