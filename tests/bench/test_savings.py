"""Rows of work that is shared: several sequences, and guesses from the text."""

from __future__ import annotations

import copy

import pytest
import tiny
from marks import needs_kernels

import edgeqat
from edgeqat.bench import savings
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def folder(place, context, template=None, tokenizer=True):
    model = edgeqat.prepare(tiny.llama(max_position_embeddings=context), "w4a8kv4")
    made = copy.deepcopy(tiny.tokenizer()) if tokenizer else None
    if template:
        made.chat_template = template
    edgeqat.save(model, place, tokenizer=made)
    return place


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_rows_of_a_folder(template, tmp_path, monkeypatch):
    written, plain = [], Engine.generate

    def noted(*given, **options):
        written.append(list(plain(*given, **options)))
        return iter(written[-1])

    monkeypatch.setattr(Engine, "generate", noted)
    rows = savings.run(folder(tmp_path / "packed", 2048, template), 1, 2)
    assert [row["test"] for row in rows] == ["tg64x4", "summary", "summary-lookup"]
    assert all(row["tokens_per_second"]["mean"] > 0 and row["file_bytes"] > 0 for row in rows)
    assert len(written) == 6 and all(tokens == written[0] for tokens in written)
    assert 0 < len(written[0]) <= savings.SUMMARY_TOKENS


@pytest.mark.parametrize(("context", "tokenizer"), [(128, True), (2048, False)])
def test_what_does_not_fit_has_no_row(context, tokenizer, tmp_path):
    rows = savings.run(folder(tmp_path / "packed", context, None, tokenizer), 1, 1)
    assert [row["test"] for row in rows] == ["tg64x4"]
