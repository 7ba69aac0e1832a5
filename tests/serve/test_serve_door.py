"""`edgeqat serve` from outside: start and end, keys, hosts, metrics, the page's headers."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from marks import needs_kernels
from prometheus_client.parser import text_string_to_metric_families
from serving import served, until

from edgeqat.cli import run
from edgeqat.serve.gate import is_local

pytestmark = needs_kernels
READY = re.compile(r"serving (\S+) at (http://\S+) ")


@pytest.fixture(scope="module")
def locked(chat_folder):
    with served(chat_folder, api_key="secret") as running:
        yield running


def test_a_key_is_demanded_but_for_health_and_the_page(locked):
    def status(path, key=None, scheme="Bearer"):
        headers = {} if key is None else {"Authorization": f"{scheme} {key}"}
        return httpx.get(f"{locked.url}{path}", headers=headers).status_code

    assert status("/health") == status("/") == 200
    for path in ("/v1/models", "/metrics", "/nothing"):
        assert status(path) == status(path, "wrong") == status(path, "secret", "Basic") == 401
    assert status("/v1/models", "secret") == status("/v1/models", "secret", "bearer") == 200
    assert status("/nothing", "secret") == 404
    refused = httpx.post(f"{locked.url}/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"
    raw = httpx.get(f"{locked.url}/metrics", headers={b"Authorization": b"Bearer \xff\xe9"})
    assert raw.status_code == 401


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("127.0.0.1:8000", True), ("[::1]:80", True),
        ("127.1.2.3", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
        ("", False), ("localhost.evil.example:80", False), ("192.168.0.1", False),
        ("[::2]", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host, local):
    assert is_local(host) == local


def test_other_names_are_refused_on_this_machine(server, chat_folder):
    headers = {"Host": "evil.example"}
    for path in ("/", "/health", "/v1/models"):
        response = httpx.get(f"{server.url}{path}", headers=headers)
        assert response.status_code == 403
        assert "'evil.example' is not this machine" in response.json()["error"]["message"]
    with served(chat_folder, local=False) as everywhere:
        assert httpx.get(f"{everywhere.url}/health", headers=headers).status_code == 200


def test_no_other_site_is_let_in(server):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        response = httpx.request(method, f"{server.url}/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_page_may_run_its_own_script_alone(server):
    response = httpx.get(server.url)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", response.text)
    assert not re.search(r"https?://|\bon\w+=\"|style=\"", response.text)


def test_metrics_are_prometheus(server):
    def values():
        text = httpx.get(f"{server.url}/metrics").text
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return {(s.name, *sorted(s.labels.values())): s.value for s in samples}

    before = values()
    server.text("the river of metrics", max_tokens=5)
    used = server.complete("the river of metrics", max_tokens=5)["usage"]
    httpx.get(f"{server.url}/nowhere")
    after = values()

    def more(*name):
        return after[name] - before.get(name, 0)

    assert more("edgeqat_requests_total", "/v1/completions", "200") == 2
    assert more("edgeqat_requests_total", "404", "other") == 1
    assert more("edgeqat_generated_tokens_total") == 10
    assert more("edgeqat_prompt_tokens_total") == 2 * used["prompt_tokens"]
    cached = used["prompt_tokens_details"]["cached_tokens"]
    assert cached == used["prompt_tokens"] - 1
    assert more("edgeqat_cached_tokens_total") >= cached
    assert more("edgeqat_engine_steps_total") >= 10
    assert more("edgeqat_time_to_first_token_seconds_count") == 2
    assert more("edgeqat_time_per_token_seconds_count") == 8
    assert after[("edgeqat_requests_running",)] == after[("edgeqat_requests_waiting",)] == 0


class Program:
    """`edgeqat serve` as a process."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "edgeqat.cli", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.line = self.process.stdout.readline()
        self.name, self.url = READY.match(self.line).groups()

    def end(self, sign):
        self.process.send_signal(sign)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_answers(chat_folder, sign):
    program = Program(chat_folder, "--port", 0, "--threads", 1, EDGEQAT_API_KEY="secret")
    assert program.name == "demo"
    got = []
    headers = {"Authorization": "Bearer secret"}
    url = f"{program.url}/v1/completions"
    # at temperature 2 some of a hundred texts are long
    body = {"prompt": "a", "max_tokens": 500, "temperature": 2}

    def work():
        with httpx.Client(timeout=60, headers=headers) as client:
            try:
                while True:
                    got.append(client.post(url, json=body).status_code)
            except httpx.TransportError:
                return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(got) > 2)
    code, _, err = program.end(sign)
    for thread in threads:
        thread.join()
    assert (code, err) == (0, "")
    assert set(got) == {200, 503}


def test_what_cannot_be_served_is_one_line(chat_folder, tmp_path, capsys, monkeypatch):
    def told(*arguments, code=2):
        assert run(["serve", *map(str, arguments)]) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port: {port} of 127.0.0.1 cannot be had" in told(chat_folder, "--port", port)
    assert "has none" in told(tmp_path, "--port", 0, code=1)
    assert "does not exist" in told(tmp_path / "nothing", "--port", 0, code=1)
    assert "is no address of this machine" in told(chat_folder, "--host", "no host", "--port", 0)
    assert "api-key: it is empty" in told(chat_folder, "--port", 0, "--api-key", "")
    assert "--port" in told(chat_folder, "--port", 70000)
    assert "--parallel" in told(chat_folder, "--parallel", 0)
    assert "--max-body" in told(chat_folder, "--max-body", "inf")
    from edgeqat import native
    from edgeqat.serve import server

    def refuses(*_):
        raise native.UnsupportedModel("it runs in torch only")

    monkeypatch.setattr(server, "Engine", refuses)
    assert "the engine does not run" in told(chat_folder, "--port", 0)


def test_everybody_without_a_key_is_warned_of(chat_folder):
    program = Program(chat_folder, "--host", "0.0.0.0", "--port", 0, "--name", "mine")
    port = program.url.rpartition(":")[2]
    models = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Host": "elsewhere"})
    assert models.json()["data"][0]["id"] == "mine"
    code, out, err = program.end(signal.SIGTERM)
    assert (code, out) == (0, "") and err.count("\n") == 1
    assert "everybody who reaches http://0.0.0.0" in err and "EDGEQAT_API_KEY" in err


def test_an_access_log_is_asked_for(chat_folder):
    program = Program(chat_folder, "--port", 0, "--access-log")
    httpx.get(f"{program.url}/health")
    assert re.search(r"^GET /health 200 [\d.]+ s$", program.end(signal.SIGTERM)[2], re.MULTILINE)
