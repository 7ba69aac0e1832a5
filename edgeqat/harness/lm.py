"""lm-eval with our models: the class `edgeqat` of its registry, and its task runner as a function.

    python -m edgeqat.harness.lm run --model edgeqat --model_args pretrained=DIR ...

is lm-eval's own command line with the class registered (it loads no plug-ins). The class turns
requests into token sequences as lm-eval's `hf` does, so that the same model gets the same numbers;
what computes them is a backend (harness/backends). An empty context is the BOS token (EOS where a
tokenizer has none); whether the tokenizer adds one to a context is the tokenizer's business unless
`add_bos_token` says otherwise. Both are in the result.

The only file that knows lm-eval.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeqat.errors import DataError, EdgeQATError, UsageError, nearest
from edgeqat.harness.extra import check_installed

try:
    check_installed()
except EdgeQATError as error:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: {error}\n")
    sys.exit(error.exit_code)

import lm_eval
from lm_eval import __main__ as lm_eval_main
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from edgeqat.data.sources import ROOT_VARIABLE
from edgeqat.harness.backends import FAKE_QUANT, Backend, open_backend
from edgeqat.runtime.sampling import GREEDY, Sampling

NAME = "edgeqat"
_BATCH = 64
_ARGUMENTS = ["pretrained", "backend", "batch_size", "max_length", "add_bos_token", "threads"]
_NEW_TOKENS = 256  # of generate_until, where a task says nothing
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "min_p": 0.0}
_KNOWN = ("until", "do_sample", "temperature", "top_k", "top_p")
_NAMES_OF_LIMIT = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model(NAME)
class EdgeQATLM(TemplateLM):
    """A backend as lm-eval's language model; the arguments are those of --model_args.

    pretrained: packed folder, or float model with backend=float. max_length: of a sequence, at most
    the model's. opened: the backend, where a caller has it already.
    """

    def __init__(
        self,
        pretrained: str,
        backend: str = FAKE_QUANT,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        threads: int | None = None,
        max_batch_size: int | None = None,  # of lm-eval's command line, as device is
        device: str | None = None,
        opened: Backend | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise UsageError(f"model_args: '{name}' is unknown; {nearest(name, _ARGUMENTS)}")
        size_text = str(batch_size or "")  # `auto` of lm-eval's command line is ours
        size = int(size_text) if size_text.isdigit() else _BATCH
        self.opened = opened or open_backend(backend, pretrained, size, threads)
        self.tokenizer = self.opened.tokenizer
        self.add_bos_token = add_bos_token
        if max_length is not None and not 1 < max_length <= self.opened.positions:
            raise UsageError(
                f"max-length: {max_length} is not within the model's {self.opened.positions} "
                "positions; leave it out or lower it"
            )
        self.max_length = max_length or self.opened.positions
        self.cut = 0  # requests that were longer
        self.scored, self.cpu_seconds = 0, 0.0  # sequences, and what computing them took
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise UsageError(
                "tokenizer: it has neither a BOS nor an EOS token to stand before a text; add one "
                "to its tokenizer_config.json"
            )

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            if string.startswith(self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        if add_special_tokens is None:
            return self.tokenizer.encode(string)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of (texts, context ids, continuation ids); what is too long
        loses its beginning.
        """
        sequences, counts = [], []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UsageError(
                    f"tasks: an answer of {len(continuation)} tokens exceeds the {self.max_length} "
                    "positions of a sequence; choose another task or a larger --max-length"
                )
            whole = [*context, *continuation]
            self.cut += len(whole) > self.max_length + 1
            sequences.append(whole[-(self.max_length + 1) :])
            counts.append(len(continuation))
        start = time.process_time()
        with tqdm(total=len(sequences), desc=self.opened.name, disable=disable_tqdm) as bar:
            scores = self.opened.score(sequences, counts, bar.update)
        self.scored += len(sequences)
        self.cpu_seconds += time.process_time() - start
        for (texts, *_), score in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows, counts = [], []
        for request in requests:
            spans = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            pairs = [(None, *utils.make_disjoint_window(window)) for window in spans]
            windows += pairs
            counts.append(len(pairs))
        values = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(values)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        with tqdm(total=len(requests), desc=self.opened.name, disable=disable_tqdm) as bar:
            for members in groups.values():
                options = dict(requests[members[0]].args[1])
                sampling = _sampling(options)
                limit = next(
                    (int(options[n]) for n in _NAMES_OF_LIMIT if n in options), _NEW_TOKENS
                )
                room = self.max_length - limit
                if room < 1:
                    raise UsageError(
                        f"tasks: {limit} new tokens do not fit into the {self.max_length} "
                        "positions of a sequence; set --gen-kwargs max_gen_toks=N"
                    )
                until = options.get("until") or []
                stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
                size = self.opened.batch_size
                # one by one: what begins alike follows one another; else: what is as long
                order = sorted(
                    members,
                    key=lambda n: requests[n].args[0] if size == 1 else -len(requests[n].args[0]),
                )
                for start in range(0, len(order), size):
                    part = order[start : start + size]
                    prompts = [self.tok_encode(requests[n].args[0]) for n in part]
                    self.cut += sum(len(prompt) > room for prompt in prompts)
                    prompts = [prompt[-room:] or [self.prefix_token_id] for prompt in prompts]
                    texts = self.opened.generate(prompts, limit, stops, sampling)
                    for number, tokens in zip(part, texts, strict=True):
                        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                        for stop in stops:
                            text = text.split(stop)[0]
                        answers[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(part))
        return [answers[number] for number in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval adds to `config` of its result."""
        bos = {
            "prefix_token": self.tokenizer.decode(self.prefix_token_id),
            "prefix_token_id": self.prefix_token_id,
            "before_a_context": self.tok_encode("a")[:1] == [self.prefix_token_id],
        }
        facts = {"backend": self.opened.name, "sequences_at_once": self.opened.batch_size}
        facts |= self.opened.facts
        return {
            **facts,
            "max_length": self.max_length,
            "bos": bos,
            "cut_requests": self.cut,
            "scored_sequences": self.scored,
            "scoring_cpu_seconds": round(self.cpu_seconds, 3),
        }


def run_tasks(
    model: EdgeQATLM,
    tasks: Sequence[str],
    folder: Path,
    data_root: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: str | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """lm-eval's result of tasks by name, with `chat` through the chat template; those of `folder`
    come before lm-eval's own of the same name. Raises an EdgeQATError in one line.
    """
    if chat and not model.tokenizer.chat_template:
        raise UsageError("chat: the model's tokenizer has no chat template; leave out --chat")
    try:
        with _quiet():
            result: Any = lm_eval.simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=_manager(tasks, folder, data_root),
                limit=limit,
                num_fewshot=num_fewshot,
                gen_kwargs=gen_kwargs,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                log_samples=False,
            )
    except EdgeQATError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        way = "look at --limit, --num-fewshot and --gen-kwargs"
        if isinstance(error, OSError | ImportError):
            way = "lm-eval's own data come from the hub: go online once, or name a --data-root"
        raise DataError(f"tasks: '{', '.join(tasks)}' cannot be run ({line}); {way}") from error
    return result


def table(result: dict[str, Any]) -> str:
    """lm-eval's tables of a result: tasks, then groups."""
    parts = [utils.make_table(result)]
    if result.get("groups"):
        parts.append(utils.make_table(result, "groups"))
    return "\n".join(parts)


def plain(value: Any) -> Any:
    """A JSON value for what a result may hold: for `default` of json.dumps."""
    return utils.handle_non_serializable(value)


def main() -> None:
    """lm-eval's command line, with our model beside its own."""
    importlib.import_module("lm_eval.models")  # it fills its registry itself only while it is empty
    try:
        lm_eval_main.cli_evaluate()
    except EdgeQATError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def _manager(tasks: Sequence[str], folder: Path, data_root: str | None) -> TaskManager:
    """A manager that knows the tasks: lm-eval's own, from the hub, where no data root is named and
    it has them; else ours, beside which lm-eval's thousands of files are read only where needed.
    """
    if not (data_root or os.environ.get(ROOT_VARIABLE)):
        manager = TaskManager()
        if all(name in manager.all_tasks for name in tasks):
            return manager
    options: dict[str, Any] = {"metadata": {"data_root": data_root} if data_root else {}}
    options["include_path"] = str(folder)
    manager = TaskManager(include_defaults=False, **options)
    if all(name in manager.all_tasks for name in tasks):
        return manager
    manager = TaskManager(**options)
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise UsageError(f"tasks: '{name}' is unknown; {_nearest(name, manager)}")
    return manager


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's warnings: one a name that ours overrides, one a local file."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _nearest(name: str, manager: TaskManager) -> str:
    hint = nearest(name, manager.all_tasks)
    return hint if hint.startswith("did") else "`lm-eval ls tasks` and eval/lm_eval list them"


def _sampling(options: dict[str, Any]) -> Sampling:
    names = [*_KNOWN, *_NAMES_OF_LIMIT]
    for name, value in options.items():
        if name not in names and (name not in _NEUTRAL or value != _NEUTRAL[name]):
            raise UsageError(
                f"gen-kwargs: '{name}' ({value}) is not among what every backend knows; leave it "
                f"out ({nearest(name, names)})"
            )
    try:
        temperature = float(options.get("temperature") or 0)
        others = int(options.get("top_k", 0)), float(options.get("top_p", 1.0))
    except ValueError as error:
        raise UsageError(f"gen-kwargs: {error}; give a number") from None
    sampled = options.get("do_sample", temperature > 0)
    return Sampling(temperature or 1.0, *others) if sampled else GREEDY


if __name__ == "__main__":
    main()
