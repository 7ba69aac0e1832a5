"""A running `edgeqat serve` for tests: the server in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

import edgeqat
from edgeqat.hf import float_model
from edgeqat.serve.api import Api
from edgeqat.serve.server import Server, bound, opened_api, url_of
from edgeqat.serve.settings import Settings

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
NAME = "demo"


def pack(place: Path, template: str | None = TEMPLATE) -> Path:
    """The packed demo with a chat template; hardly any text of it ends by itself."""
    tokenizer, model = float_model.load_tokenizer("demo"), float_model.load_model("demo")
    tokenizer.chat_template = template
    edgeqat.save(edgeqat.prepare(model, "w4a8kv4"), place, tokenizer=tokenizer)
    return place


@dataclass
class Served:
    url: str
    api: Api

    def post(self, path: str, body=None, **given) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=60, **given)

    def complete(self, prompt, **options) -> dict:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 8, **options}
        response = self.post("completions", body)
        assert response.status_code == 200, response.text
        return response.json()

    def text(self, prompt, **options) -> str:
        return self.complete(prompt, **options)["choices"][0]["text"]

    def slow_down(self, seconds: float) -> None:
        """Every step of the engine takes so much longer."""
        plain = self.api.batch.forward

        def forward(parts):
            time.sleep(seconds)
            return plain(parts)

        self.api.batch.forward = forward

    def wait_until_idle(self) -> None:
        until(lambda: not self.api.scheduler.running() and not self.api.scheduler.waiting())


def until(true, seconds: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def served(folder: Path, **settings) -> Iterator[Served]:
    """A server of a folder, as long as the block."""
    started = threading.Event()
    with (
        bound("127.0.0.1", 0) as opened,
        opened_api(folder, Settings(NAME, **settings), 1, None) as api,
    ):
        server = Server(api, started.set)
        thread = threading.Thread(target=server.run, args=([opened],))
        url = url_of(opened)
        thread.start()
        try:
            assert started.wait(30)
            yield Served(url, api)
        finally:
            server.should_exit = True
            thread.join()
