"""The openai package, unchanged, against a server."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import openai
import pytest
from marks import needs_kernels
from serving import NAME

from edgeqat.runtime.engine import Engine
from edgeqat.serve.scores import likeliest, log_probabilities

pytestmark = needs_kernels
HELLO = [{"role": "user", "content": "hello"}]


def chat(client, messages=HELLO, **options):
    options = {"model": NAME, "temperature": 0, "max_tokens": 12} | options
    return client.chat.completions.create(messages=messages, **options)


def test_a_chat_streams(client):
    stream = chat(client, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    *texts, last, used = chunks
    assert last.choices[0].finish_reason == "length" and used.choices == []
    text = "".join(chunk.choices[0].delta.content or "" for chunk in texts)
    whole = chat(client)
    assert text == whole.choices[0].message.content != ""
    assert sum(bool(chunk.choices[0].delta.content) for chunk in texts) > 3
    assert used.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert used.usage.total_tokens == used.usage.prompt_tokens + 12


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="'other' is unknown here; use 'demo'"):
        client.models.retrieve("other")


def test_completions_go_on_as_the_engine_does(client, server, chat_folder):
    made = client.completions.create(model=NAME, prompt="the old", temperature=0, max_tokens=9)
    ids = server.api.reader.encode("the old")
    with Engine(chat_folder) as engine:
        written = list(engine.generate(ids, 9))
    with_prompt = server.api.reader._tokenizer.decode([*ids, *written])
    assert "the old" + made.choices[0].text == with_prompt
    by_ids = client.completions.create(model=NAME, prompt=ids, temperature=0, max_tokens=9)
    assert by_ids.choices[0].text == made.choices[0].text


def test_text_parts_are_one_text(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    made = chat(client, [{"role": "user", "content": parts}])
    assert made.choices[0].message.content == chat(client).choices[0].message.content
    developer, system = (
        chat(client, [{"role": role, "content": "Be brief."}, *HELLO]).choices[0].message.content
        for role in ("developer", "system")
    )
    assert developer == system


def test_seeds_repeat(client):
    def text(**options):
        options = {"temperature": 2, "max_tokens": 20, "extra_body": {"top_k": 200}} | options
        return chat(client, **options).choices[0].message.content

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(seed=-1) == text(seed=2**64 - 1)
    assert len({text() for _ in range(3)}) > 1
    assert text(extra_body={"top_k": 1}) == text(top_p=0) == text(temperature=0)


def test_stops_end_an_answer_also_across_tokens(client):
    whole = chat(client, max_tokens=24, logprobs=True).choices[0]
    tokens = [entry.token for entry in whole.logprobs.content]
    text = whole.message.content
    stop = tokens[4][-1] + tokens[5] + tokens[6][:1]
    assert text.count(stop) == 1
    made = chat(client, max_tokens=24, stop=stop, logprobs=True)
    assert made.choices[0].message.content == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"
    assert len(made.choices[0].logprobs.content) <= 5
    chunks = list(chat(client, max_tokens=24, stop=["never", stop], stream=True))
    shown = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert shown == text[: text.index(stop)] and chunks[-1].choices[0].finish_reason == "stop"
    unfinished = text[-1] + "\x00"  # held back to the end, and then shown
    assert chat(client, max_tokens=24, stop=unfinished).choices[0].message.content == text


def test_logprobs_of_a_chat(client):
    made = chat(client, logprobs=True, top_logprobs=3, max_tokens=6).choices[0]
    entries = made.logprobs.content
    assert "".join(entry.token for entry in entries) == made.message.content
    assert all(entry.logprob == entry.top_logprobs[0].logprob < 0 for entry in entries)
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(bytes(entry.bytes).decode() == entry.token for entry in entries)
    chunks = list(chat(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries
    assert chat(client).choices[0].logprobs is None


def test_logprobs_of_a_completion(client):
    options = {"model": NAME, "prompt": "the old", "max_tokens": 5, "temperature": 0}
    made = client.completions.create(**options, logprobs=2).choices[0]
    told = made.logprobs
    assert "".join(told.tokens) == made.text
    assert [made.text[at:][: len(t)] for at, t in zip(told.text_offset, told.tokens, strict=True)]
    assert all(len(top) == 2 for top in told.top_logprobs)
    best = [max(top.values()) for top in told.top_logprobs]
    assert told.token_logprobs == best
    assert client.completions.create(**options, logprobs=0).choices[0].logprobs.tokens


def test_log_probabilities_by_hand():
    logits = np.log(np.array([1, 2, 5], np.float32)) + 3
    assert np.allclose(np.exp(log_probabilities(logits)), [1 / 8, 2 / 8, 5 / 8])
    assert likeliest(np.array([0.0, 2.0, 2.0, 1.0]), 3) == [1, 2, 3]
    assert likeliest(np.array([0.0, 1.0]), 5) == [1, 0] and likeliest(np.zeros(2), 0) == []
    assert math.isclose(log_probabilities(np.array([1e4, 1e4], np.float32))[0], -math.log(2))


def test_the_second_turn_reads_what_is_new(client):
    first = chat(client, [{"role": "user", "content": "a question of its own"}])
    messages = [
        {"role": "user", "content": "a question of its own"},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and another"},
    ]
    second = chat(client, messages)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens <= cached < second.usage.prompt_tokens
    again = chat(client, messages)
    assert again.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    assert again.choices[0].message.content == second.choices[0].message.content


def test_an_answer_ends_where_the_context_does(client, server):
    made = chat(client, max_tokens=None)
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.usage.total_tokens <= server.api.batch.context
    assert client.completions.create(model=NAME, prompt="a").usage.completion_tokens <= 16


def test_neither_torch_nor_transformers_is_loaded(chat_folder):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgeqat.serve.server import opened_api\n"
        "from edgeqat.serve.settings import Settings\n"
        f"with opened_api(Path({str(chat_folder)!r}), Settings('demo'), 1, None) as api:\n"
        "    assert api.reader.template([{'role': 'user', 'content': 'hello'}])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
