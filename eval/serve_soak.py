"""Many clients on one `edgeqat serve`: half of them go in mid-stream; the others' texts are those
of lone requests, and the memory of the server stays what it was.

    python eval/serve_soak.py FOLDER
    python eval/serve_soak.py FOLDER --clients 8 --requests 50 --parallel 4

Exit code 1: a text differs, a request failed, the resident memory grew by more than 5%, or the
server did not end with 0.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from pathlib import Path

import httpx
from served import served

WORDS = [
    "the", "old", "river", "of", "import", "numpy", "while", "question", "answer", "north", "again",
    "open",
]  # fmt: skip
GROWTH = 1.05


class Client:
    """Requests to a server, whose texts are compared with what a lone request gave."""

    def __init__(self, http: httpx.AsyncClient, tokens: int) -> None:
        self._http, self._tokens = http, tokens

    async def text(self, prompt: str, pieces: int | None = None) -> str | None:
        """The greedy text of a prompt; None where the client goes after so many pieces."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": self._tokens, "stream": True}
        texts: list[str] = []
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "".join(texts)
                if line:
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    texts.append(choice["text"])
                if pieces is not None and len(texts) >= pieces:
                    return None
        raise RuntimeError("a stream ended without [DONE]")


def prompts(dice: random.Random, count: int) -> list[str]:
    """Prompts of 1 to 60 words, some of which begin alike."""
    begins = [" ".join(dice.choices(WORDS, k=20)) for _ in range(4)]
    return [
        " ".join([dice.choice([*begins, ""]), *dice.choices(WORDS, k=dice.randint(1, 40))]).strip()
        for _ in range(count)
    ]


def resident(process: int) -> int:
    """kB of memory that a process has."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


async def soak(url: str, process: int, options: argparse.Namespace) -> bool:
    """Run all clients; whether all was well."""
    dice = random.Random(options.seed)
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        client = Client(http, options.tokens)
        known = prompts(dice, options.prompts)
        alone = {prompt: await client.text(prompt) for prompt in known}
        counts = {"same": 0, "different": 0, "gone": 0}

        async def work(number: int, requests: int) -> None:
            own = random.Random(options.seed + number)
            for _ in range(requests):
                prompt = own.choice(known)
                leaves = own.random() < 0.5
                text = await client.text(prompt, own.randint(1, 20) if leaves else None)
                same = "same" if text == alone[prompt] else "different"
                counts["gone" if text is None else same] += 1

        async def all_of(requests: int) -> int:
            await asyncio.gather(*(work(n, requests) for n in range(options.clients)))
            await asyncio.sleep(1)
            return resident(process)

        before = await all_of(max(1, options.requests // 10))  # caches and buffers are filled
        after = await all_of(options.requests)
        metrics = (await http.get("/metrics")).text
    idle = "edgeqat_requests_running 0.0" in metrics
    print(f"{counts}; resident {before} kB before, {after} kB after; idle: {idle}")
    return not counts["different"] and after <= GROWTH * before and idle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50, help="of each client")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with served(options.folder, "--parallel", str(options.parallel)) as (url, process):
        good = asyncio.run(soak(url, process, options))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
