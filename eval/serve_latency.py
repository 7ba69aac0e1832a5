"""Seconds to the first token of `edgeqat serve`, and tokens a second of one client and of four.

    python eval/serve_latency.py FOLDER [--threads N] [--repeat 5]

FOLDER is a packed chat model with room for 2,048 tokens. Rows are medians: the first token behind a
prompt of 128 new tokens; that of the next turn in a conversation of 1,000; tokens a second of one
greedy answer of 128 tokens, and of four at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time

import httpx
from served import served

WORDS = (
    "river", "stone", "morning", "window", "garden", "letter", "harbour", "winter", "copper",
    "basket", "island", "thunder", "market", "silver", "forest", "bridge", "candle", "meadow",
    "sailor", "orchard",
)  # fmt: skip
ANSWER = 128


def asked(url: str, path: str, body: dict) -> tuple[float, float, dict, str]:
    """Seconds to the first text and to the end, usage, and the text."""
    body = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **body}
    start, first, usage, text = time.perf_counter(), 0.0, {}, ""
    with httpx.stream("POST", f"{url}/v1/{path}", json=body, timeout=120) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                if piece and not first:
                    first = time.perf_counter() - start
                text += piece
    return first, time.perf_counter() - start, usage, text


def new_words(count: int, seed: int) -> str:
    """Text that no cache holds."""
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 3)) % len(WORDS)] for i in range(count))


def second_turn(url: str, seed: int) -> tuple[float, dict]:
    """Seconds to the first token of the turn behind some 1,000 tokens."""
    messages = [{"role": "user", "content": f"{seed}. Read this. {new_words(900, seed)}"}]
    answer = asked(url, "chat/completions", {"messages": messages, "max_tokens": 32})[3]
    messages += [{"role": "assistant", "content": answer}]
    messages += [{"role": "user", "content": "Which word came first?"}]
    first, _, usage, _ = asked(url, "chat/completions", {"messages": messages, "max_tokens": 8})
    return first, usage


def speed(url: str, clients: int, seed: int) -> float:
    """Tokens a second of answers that begin behind short prompts."""
    counts = [0] * clients

    def work(number: int) -> None:
        body = {"prompt": f"{seed + number}. Once upon a time", "max_tokens": ANSWER}
        counts[number] = asked(url, "completions", body)[2]["completion_tokens"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    threads = ["--threads", str(options.threads)] if options.threads else []
    with served(options.folder, *threads) as (url, _):
        prompts, turns, lone, four = [], [], [], []
        for seed in range(1, options.repeat + 2):  # the first round warms up
            body = {"prompt": list(range(100 * seed, 100 * seed + 128)), "max_tokens": 2}
            prompts.append(asked(url, "completions", body)[0])
            first, usage = second_turn(url, seed)
            turns.append(first)
            lone.append(speed(url, 1, 100 * seed))
            four.append(speed(url, 4, 100 * seed + 10))
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    print(f"first token behind 128 new tokens   {statistics.median(prompts[1:]):.3f} s")
    print(
        f"first token of the next turn        {statistics.median(turns[1:]):.3f} s "
        f"({cached} of {usage['prompt_tokens']} tokens were in the cache)"
    )
    print(f"tokens a second, one client         {statistics.median(lone[1:]):.1f}")
    print(f"tokens a second, four clients       {statistics.median(four[1:]):.1f}")


if __name__ == "__main__":
    main()
