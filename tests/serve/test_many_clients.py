"""Clients beside one another: the same texts as alone, a full queue, time, and those who go."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time

import httpx
import pytest
from marks import needs_kernels
from serving import served, until

from edgeqat.serve import connection

pytestmark = needs_kernels
PROMPTS = ["the old river", "import numpy", "a question", "def main():", "of all the", "while"]


@pytest.fixture
def own(chat_folder):
    """A server of a test's own."""
    with served(chat_folder, parallel=2, queue=1) as running:
        yield running


def asked(prompt, **options):
    return {"prompt": prompt, "temperature": 0, "max_tokens": 40, **options}


async def stream(client, server, body, pieces=None):
    """The text of an answer; of `pieces` pieces only, where the client goes after them."""
    texts = []
    url = f"{server.url}/v1/completions"
    async with client.stream("POST", url, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return "".join(texts)
            if line:
                texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
            if pieces is not None and len(texts) >= pieces:
                return None
    raise AssertionError("the stream ended without [DONE]")


def test_half_of_many_go_and_the_others_get_what_they_would_alone(chat_folder):
    dice = random.Random(0)
    with served(chat_folder, parallel=3) as server:
        # prompts longer than a step reads, with beginnings in common
        prompts = [f"{dice.choice(PROMPTS)} " * dice.randint(1, 40) + one for one in PROMPTS * 4]
        alone = {prompt: server.text(prompt, max_tokens=40) for prompt in prompts}
        bodies = [asked(prompt) for prompt in prompts]

        async def work():
            async with httpx.AsyncClient(timeout=60) as client:
                going = [None if n % 2 else dice.randint(1, 20) for n in range(len(bodies))]
                jobs = [stream(client, server, b, g) for b, g in zip(bodies, going, strict=True)]
                return await asyncio.gather(*jobs)

        texts = asyncio.run(work())
        whole = {p: t for p, t in zip(prompts, texts, strict=True) if t is not None}
        assert len(whole) >= 10
        assert whole == {prompt: alone[prompt] for prompt in whole}
        server.wait_until_idle()


def test_running_answers_go_on_while_a_prompt_is_read(own):
    own.slow_down(0.02)

    async def work():
        async with httpx.AsyncClient(timeout=60) as client:
            first = asyncio.create_task(stream(client, own, asked("a", max_tokens=30)))
            await asyncio.sleep(0.2)
            await client.post(f"{own.url}/v1/completions", json=asked([7] * 400, max_tokens=1))
            return await first

    own.api.batch.steps = steps = []
    plain = own.api.batch.forward
    own.api.batch.forward = lambda parts: steps.append([len(p.ids) for p in parts]) or plain(parts)
    asyncio.run(work())
    beside = [step for step in steps if len(step) == 2 and 64 in step]
    assert len(beside) >= 6 and all(1 in step for step in beside)


def test_a_full_queue_says_when_to_come_again(own):
    own.slow_down(0.05)
    bodies = [asked("a", max_tokens=20)] * 6

    async def work():
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{own.url}/v1/completions"
            return await asyncio.gather(*(client.post(url, json=body) for body in bodies))

    responses = asyncio.run(work())
    codes = sorted(response.status_code for response in responses)
    assert codes == [200] * 3 + [429] * 3
    full = next(response for response in responses if response.status_code == 429)
    assert int(full.headers["Retry-After"]) > 0
    assert full.json()["error"]["type"] == "rate_limit_error"


def test_time_ends_an_answer_and_frees_its_place(chat_folder):
    with served(chat_folder, parallel=1, timeout=0.5) as server:
        server.slow_down(0.05)
        response = server.post("completions", asked("a", max_tokens=200))
        assert response.status_code == 504
        assert "longer than 0.5 seconds" in response.json()["error"]["message"]
        body = asked("a", max_tokens=200, stream=True)
        lines = server.post("completions", body).text.splitlines()
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert not server.api.scheduler.running()
        assert server.text("a", max_tokens=2)


def test_time_counts_in_the_queue_too(chat_folder):
    with served(chat_folder, parallel=1, timeout=1.0) as server:
        server.slow_down(0.1)

        async def work():
            async with httpx.AsyncClient(timeout=60) as client:
                url = f"{server.url}/v1/completions"
                body = asked("a", max_tokens=200)
                return await asyncio.gather(*(client.post(url, json=body) for _ in range(3)))

        start = time.monotonic()
        assert {response.status_code for response in asyncio.run(work())} == {504}
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("streamed", [True, False])
def test_who_goes_frees_the_place(own, streamed):
    own.slow_down(0.05)
    body = asked("a", max_tokens=400, stream=streamed)
    url = f"{own.url}/v1/completions"
    with httpx.Client(timeout=0.3) as client:
        if streamed:
            with client.stream("POST", url, json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(url, json=body)
    assert own.api.scheduler.running() <= 1
    start = time.monotonic()
    own.wait_until_idle()
    assert time.monotonic() - start < 5


def raw(server, body):
    """A connection that has sent a request and reads nothing yet."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    made.sendall(head.encode() + data)
    return made


def test_who_waits_in_the_queue_and_goes_frees_it(own):
    own.slow_down(0.05)
    body = asked("a", max_tokens=300)
    clients = [raw(own, body) for _ in range(3)]
    until(lambda: own.api.scheduler.waiting() == 1)
    clients.pop().close()
    until(lambda: own.api.scheduler.waiting() == 0)
    for client in clients:
        client.close()
    own.wait_until_idle()


def test_who_reads_slowly_holds_up_nobody(own):
    slow = raw(own, asked("a", max_tokens=400, stream=True))
    own.wait_until_idle()  # its answer is written, though it reads nothing
    start = time.monotonic()
    assert own.text("the old river")
    assert time.monotonic() - start < 5
    slow.close()


def test_a_long_prompt_does_not_hold_up_the_event_loop(chat_folder):
    """Encoding is slow here, and still /health answers at once."""
    with served(chat_folder) as server:
        plain = server.api.reader.encode
        server.api.reader.encode = lambda text: time.sleep(1.5) or plain(text)

        async def work():
            async with httpx.AsyncClient(timeout=60) as client:
                url = f"{server.url}/v1/completions"
                slow = asyncio.create_task(client.post(url, json=asked("a")))
                await asyncio.sleep(0.2)
                start = time.monotonic()
                await client.get(f"{server.url}/health")
                took = time.monotonic() - start
                await slow
                return took

        assert asyncio.run(work()) < 1


def test_a_fault_where_an_answer_begins_is_its_own(own, monkeypatch):
    plain = own.api.scheduler._writer.pieces

    def pieces(behind=()):
        if 7 in behind:
            raise IndexError("a fault")
        return plain(behind)

    monkeypatch.setattr(own.api.scheduler._writer, "pieces", pieces)
    response = own.post("completions", asked([5, 7]))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_failed"
    assert own.text([5, 6]) and httpx.get(f"{own.url}/health").status_code == 200


def test_requests_that_are_being_read_are_counted(own):
    """Bodies that come slowly hold memory, so only so many of them are taken."""
    host, port = own.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000\r\n\r\n{"
    )
    slow = [socket.create_connection((host, int(port))) for _ in range(3)]  # 2 places, 1 in a queue
    for one in slow:
        one.sendall(head.encode())
    until(lambda: own.api.scheduler._arriving == 3)
    assert own.post("completions", asked("a")).status_code == 429
    for one in slow:
        one.close()
    until(lambda: own.api.scheduler._arriving == 0)
    assert own.text("a", max_tokens=2)


def test_silent_connections_are_closed(own, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE", 0.2)
    host, port = own.url.removeprefix("http://").split(":")
    own.slow_down(0.02)
    silent = [socket.create_connection((host, int(port))) for _ in range(2)]
    silent[1].sendall(b"GET /health HTTP/1.1\r\nHost:")  # and no more of it
    answer = own.text("a", max_tokens=60)  # longer than silence may be
    assert answer
    for one in silent:
        one.settimeout(10)
        assert one.recv(100) == b""
        one.close()
