"""Requests that are refused: one line with field, value and next step, in OpenAI's shape."""

from __future__ import annotations

import json

import httpx
import pytest
from marks import needs_kernels
from serving import pack, served

pytestmark = needs_kernels
JSON = {"Content-Type": "application/json"}
USER = [{"role": "user", "content": "hello"}]


def told(response: httpx.Response, status: int = 400) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 400
    return error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: it is no JSON"),
        (b"{", "body: it is no JSON"),
        (b"[1]", "body: [1] is no JSON object; send one"),
        (b'{"prompt": "\xff"}', "body: byte 12 is not UTF-8"),
        (b'{"prompt": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"temperature": 1' + b"0" * 5000 + b"}", "body: it is no JSON"),
        (b'{"prompt": "a\\ud800"}', "prompt: character 1 is \\ud800, half of a character"),
        (b'{"prompt": "a", "\\ud800": 1}', "the field is unknown"),
    ],
)
def test_no_json(server, body, words):
    response = server.post("completions", content=body, headers=JSON)
    assert words in told(response)["message"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": None}, "prompt: it is missing"),
        ({"prompt": ""}, "prompt: it has no tokens"),
        ({"prompt": []}, "prompt: the list is empty"),
        ({"prompt": ["a", "b"]}, "send each text in a request of its own"),
        ({"prompt": [True]}, "a list is taken for token ids"),
        ({"prompt": [[1]]}, "a list is taken for token ids"),
        ({"prompt": [-1]}, "prompt: -1 is no token id; give 0 to 1023"),
        ({"prompt": [1024]}, "prompt: 1024 is no token id"),
        ({"prompt": [2**70]}, f"prompt: {2**70} is no token id"),
        ({"prompt": 3}, "prompt: 3 is no prompt"),
        ({"prompt": [7] * 512}, "prompt: 512 tokens leave no room for an answer in the context of"),
        ({"max_tokens": -1}, "max_tokens: -1 is out of range; give 1 to"),
        ({"max_tokens": 0}, "max_tokens: 0 is out of range"),
        ({"max_tokens": "4"}, 'max_tokens: "4" is no whole number'),
        ({"max_tokens": 4.5}, "max_tokens: 4.5 is no whole number"),
        ({"max_tokens": True}, "max_tokens: true is no whole number"),
        ({"temperature": "hot"}, 'temperature: "hot" is no number; give one from 0 to 2'),
        ({"temperature": -0.1}, "temperature: -0.1 is out of range; give 0 to 2"),
        ({"temperature": 3}, "temperature: 3 is out of range"),
        ({"temperature": 10**400}, "temperature: 1000"),
        ({"top_p": 1.5}, "top_p: 1.5 is out of range"),
        ({"top_k": -1}, "top_k: -1 is out of range"),
        ({"seed": 1.5}, "seed: 1.5 is no whole number"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is out of range"),
        ({"stop": 3}, "stop: 3 is no text"),
        ({"stop": [3]}, "stop: [3] is no text"),
        ({"stop": list("abcde")}, "stop: 5 strings are too many; give up to 4"),
        ({"stop": ""}, "stop: a string has 0 characters"),
        ({"stop": "a" * 1001}, "stop: a string has 1001 characters"),
        ({"stream": 1}, "stream: 1 is neither true nor false"),
        ({"stream_options": {}}, "stream_options: the answer is not streamed"),
        ({"stream": True, "stream_options": 1}, "stream_options: 1 is no object"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logprobs": 21}, "logprobs: 21 is out of range; give 0 to 20"),
        ({"logprobs": True}, "logprobs: true is no whole number"),
        ({"model": 3}, "model: 3 is no text; give 'demo'"),
        ({"n": 2}, "n: 2 is not supported by this server; leave the field out"),
        ({"best_of": 2}, "best_of: 2 is not supported"),
        ({"echo": True}, "echo: true is not supported"),
        ({"suffix": "x"}, 'suffix: "x" is not supported'),
        ({"logit_bias": {"5": 1}}, 'logit_bias: {"5": 1} is not supported'),
        ({"presence_penalty": 0.5}, "presence_penalty: 0.5 is not supported"),
        ({"frequency_penalty": -1}, "frequency_penalty: -1 is not supported"),
        ({"temprature": 1}, "temprature: the field is unknown; did you mean 'temperature'?"),
    ],
)  # fmt: skip
def test_fields_of_a_completion(server, given, words):
    response = server.post("completions", {"prompt": "a", "max_tokens": 1} | given)
    assert words in told(response)["message"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"messages": None}, "messages: it is missing"),
        ({"messages": []}, "messages: the list is empty; give at least one message"),
        ({"messages": "hello"}, 'messages: "hello" is no list'),
        ({"messages": ["hello"]}, 'messages[0]: "hello" is no object'),
        ({"messages": [{"role": "king", "content": ""}]}, 'messages[0].role: "king" is unknown'),
        ({"messages": [{"content": ""}]}, "messages[0].role: null is unknown; choose from"),
        ({"messages": [*USER, {"role": "user"}]}, "messages[1].content: null is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, '"image_url"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "[0].text: null is no"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a character"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "template refuses them (chat template"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "tool_calls: it"),
        ({"messages": [{"role": "user", "content": "a " * 900}]}, "leave no room for an answer"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"tool_choice": "required"}, 'tool_choice: "required" is not supported'),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"top_logprobs": 2}, "top_logprobs: 2 needs logprobs; set logprobs to true"),
        ({"logprobs": 2}, "logprobs: 2 is neither true nor false"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "2 is not the max_completion_tokens of 3"),
        ({"prompt": "a"}, "prompt: the field is unknown"),
    ],
)  # fmt: skip
def test_fields_of_a_chat(server, given, words):
    body = json.dumps({"messages": USER, "max_tokens": 1} | given).encode()
    response = server.post("chat/completions", content=body, headers=JSON)
    error = told(response)
    assert words in error["message"]
    assert error["param"].partition("[")[0].partition(".")[0] in error["message"]


def test_both_numbers_of_a_prompt_that_is_too_long(server):
    error = told(server.post("completions", {"prompt": [7] * 600}))
    assert "600 tokens" in error["message"] and "512 tokens" in error["message"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"


def test_what_asks_for_nothing_or_changes_nothing_is_taken(server):
    harmless = {
        "n": 1, "user": "me", "metadata": {"a": "b"}, "store": True, "presence_penalty": 0.0,
        "frequency_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "none", "stop": None,
        "response_format": {"type": "text"}, "service_tier": "auto", "parallel_tool_calls": True,
        "max_completion_tokens": 1, "seed": None, "model": "demo",
    }  # fmt: skip
    assert server.post("chat/completions", {"messages": USER} | harmless).status_code == 200


def test_unknown_models_paths_and_methods(server):
    error = told(server.post("completions", {"prompt": "a", "model": "gpt-4"}), 404)
    assert error["code"] == "model_not_found"
    assert error["message"] == "model: \"gpt-4\" is unknown here; use 'demo'"
    assert "is unknown" in told(httpx.get(f"{server.url}/v1/nothing"), 404)["message"]
    assert "GET /v1/completions" in told(httpx.get(f"{server.url}/v1/completions"), 405)["message"]
    assert told(httpx.options(f"{server.url}/v1/completions"), 405)["message"].endswith("use POST")
    assert httpx.post(f"{server.url}/v1/completions/", json={}).status_code == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_is_demanded(server, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = server.post("completions", content=b'{"prompt": "a"}', headers=headers)
    assert "send the header 'Content-Type: application/json'" in told(response, 415)["message"]


def test_large_bodies_are_refused_however_they_come(chat_folder):
    with served(chat_folder, max_body=100_000) as small:
        body = b'{"prompt": "' + b"a" * 150_000 + b'"}'
        error = told(small.post("completions", content=body, headers=JSON), 413)
        assert "larger than 100000 bytes" in error["message"]

        def parts():
            for _ in range(15):
                yield b"a" * 10_000

        response = small.post("completions", content=parts(), headers=JSON)
        assert "--max-body" in told(response, 413)["message"]
        assert small.text("a")


def test_a_model_without_a_template_completes(tmp_path, caplog):
    folder = pack(tmp_path / "plain", template=None)
    with served(folder) as plain:
        error = told(plain.post("chat/completions", {"messages": USER}))
        assert error["message"] == ("messages: the model has no chat template; use /v1/completions")
        assert plain.text("a")


def test_a_fault_of_ours_is_an_error_of_its_request_alone(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(server.api.reader, "encode", lambda text: 1 / 0)
        error = told(server.post("completions", {"prompt": "a"}), 500)
        assert error["type"] == "server_error" and "division" not in error["message"]
    assert server.text("a")
