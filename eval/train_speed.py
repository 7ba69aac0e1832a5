"""Speed and memory of a training step with random weights: float, float + teacher forward, QAT.

usage: python eval/train_speed.py --shape llama-8m|llama-58m|tinyllama-1.1b|mobilenetv2-cifar100|...
                                  [--scheme w4a8kv4] [--guided] [--json FILE]

--guided: a row of QAT with guidance too (weights 0.5 and 1.0 unless --set guide... says otherwise),
and its time against distillation alone, measured in one process and in turns.

Image models take the recipe mobilenetv2-cifar100; all their rows but `float` distill.

Each row runs in a process of its own, so that its peak RSS is its own. The recipe's defaults apply;
--set changes them (--set train.bf16_states=true). With train.accumulation a step of --batch
sequences is taken in so many parts; with distill.kept a teacher's (random) answers are there.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROWS = ("float", "float_and_teacher", "qat")
PER_SECOND = "_per_second"
GUIDED_ROWS = ("qat", "guided")
GUIDE = {"guide.entropy.weight": 0.5, "guide.distribution.weight": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="llama-58m", help="of runtime/shape.py or vision/zoo.py")
    parser.add_argument("--scheme", help="default: w4a8kv4, of images w2a32")
    parser.add_argument("--batch", type=int, default=8, help="sequences or images per step")
    parser.add_argument("--context", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--steps", type=int, default=6, help="timed steps; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--set", action="append", default=[], help="recipe field, a.b=c")
    parser.add_argument("--guided", action="store_true", help="what guidance costs")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options, options.child.split("+"))))
        return
    if options.guided and images(options):
        parser.error("--guided: queries and keys are of language models; drop it")
    names = [*options.rows, "guided"] if options.guided else options.rows
    rows = {row: _in_a_process(row)[row] for row in names}
    unit = next(key for row in rows.values() for key in row if key.endswith(PER_SECOND))
    for name, row in rows.items():
        print(
            f"{name:18} {row[unit]:8.0f} {unit.removesuffix(PER_SECOND)}/s"
            f"  peak {row['peak_rss_bytes'] / 1e9:5.2f} GB"
        )
    if {"float_and_teacher", "qat"} <= rows.keys():
        ratio = rows["float_and_teacher"][unit] / rows["qat"][unit]
        print(f"QAT takes {ratio:.2f}x the time of float training + teacher forward")
    if options.guided:
        pair = _in_a_process("+".join(GUIDED_ROWS))
        ratio = pair["qat"][unit] / pair["guided"][unit]
        print(f"guided QAT takes {ratio:.2f}x the time of QAT with distillation alone")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


def _in_a_process(rows: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, *sys.argv, "--child", rows]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, rows: list[str]) -> dict[str, dict[str, float]]:
    """Tokens or images per second of the fastest step of each row, taken in turns, and the
    process's peak RSS.
    """
    from edgeqat import native

    native.keep_freed_memory()  # before torch
    import torch

    from edgeqat.memory import peak_rss_bytes

    of_images = images(options)
    native.keep_freed_memory(of_any_size=of_images)
    torch.set_num_threads(options.threads)
    make, draw = (image_stepper, images_of) if of_images else (stepper, tokens_of)
    unit, samples = ("images", 1) if of_images else ("tokens", options.context)
    steps = {row: make(options, row) for row in rows}
    fastest = dict.fromkeys(rows, float("inf"))
    for _ in range(options.steps + 1):
        batch = draw(options)
        for row, step in steps.items():
            start = time.perf_counter()
            step(batch)
            fastest[row] = min(fastest[row], time.perf_counter() - start)
    return {
        row: {
            unit + PER_SECOND: options.batch * samples / seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        for row, seconds in fastest.items()
    }


def images(options: argparse.Namespace) -> bool:
    """Whether the shape is an image model's."""
    from edgeqat.pipeline.image_task import is_image_model

    return is_image_model(options.shape)


def tokens_of(options: argparse.Namespace) -> Any:
    """Token ids (batch, context)."""
    import torch

    from edgeqat.runtime.shape import named

    return torch.randint(0, named(options.shape).vocabulary, (options.batch, options.context))


def images_of(options: argparse.Namespace) -> dict[str, Any]:
    """A batch as train/image_objective wants it."""
    import torch

    from edgeqat.hf.image_model import named

    kind, index = named(options.shape), torch.arange(options.batch)
    pixels = torch.randint(256, (options.batch, 3, kind.size, kind.size), dtype=torch.uint8)
    return {"pixels": pixels, "labels": index % kind.classes, "index": index}


def image_stepper(options: argparse.Namespace, row: str) -> Callable[[Any], None]:
    """One training step of a row, as a function of a batch of images; no guidance."""
    import torch

    from edgeqat.hf.image_model import named
    from edgeqat.hf.model import prepare
    from edgeqat.nn.calibration import calibrate
    from edgeqat.recipe import files as recipes
    from edgeqat.train.image_objective import ImageObjective
    from edgeqat.train.optim import make_optimizer, with_rates

    chosen = dict(recipes.parse_set(entry) for entry in options.set)
    scheme = {} if options.scheme is None else {"quant.scheme": options.scheme}
    recipe = recipes.load("mobilenetv2-cifar100", {**chosen, **scheme})
    kind = named(options.shape)
    model = kind.build().to(memory_format=torch.channels_last)
    teacher = None if row == "float" else copy.deepcopy(model)
    if row == "qat":
        model = prepare(model, quant=recipe.quant)
        pixels = images_of(options)["pixels"]
        calibrate(model, [kind.normalizer()(pixels)])
    weight = {"weight": float(row != "float")}
    distill, normalizer = recipe.distill.model_copy(update=weight), kind.normalizer()
    objective = ImageObjective(distill, teacher, normalizer, augmented=True)
    optimizer = make_optimizer(model.train(), with_rates(recipe.train, 0.01))

    def step(batch: Any) -> None:
        objective(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stepper(options: argparse.Namespace, row: str) -> Callable[[Any], None]:
    """One training step of a row, as a function of a batch of token ids."""
    import torch

    from edgeqat.hf.float_model import random_model
    from edgeqat.hf.model import prepare
    from edgeqat.nn.precision import uses_bf16
    from edgeqat.pipeline.preparation import trainable
    from edgeqat.recipe import files as recipes
    from edgeqat.runtime.shape import named
    from edgeqat.train.gradients import keep_gradients
    from edgeqat.train.objective import Objective
    from edgeqat.train.optim import make_optimizer, with_rates

    chosen = dict(recipes.parse_set(entry) for entry in options.set)
    values = {**(GUIDE if row == "guided" else {}), **chosen}
    if row != "guided":
        values = {key: value for key, value in values.items() if not key.startswith("guide.")}
    recipe = recipes.load(None, {**values, "quant.scheme": options.scheme or "w4a8kv4"})
    model = random_model(named(options.shape))
    teacher = None if row == "float" else copy.deepcopy(model)
    if row in GUIDED_ROWS:
        model = trainable(prepare(model, quant=recipe.quant), recipe)
    distill = recipe.distill.model_copy(update={"weight": float(row in GUIDED_ROWS)})
    answers = None
    if row == "qat" and distill.kept is not None:
        teacher, answers = None, Answers(distill.kept, named(options.shape).vocabulary)
    objective = Objective(distill, teacher, recipe.guide, outputs=answers)
    optimizer = make_optimizer(model.train(), with_rates(recipe.train, 0.01))
    parts = recipe.train.accumulation
    if parts > 1:
        keep_gradients(model)
    bf16 = uses_bf16(recipe.train.bf16, model, "cpu")
    if recipe.train.gradient_checkpointing:
        new = getattr(model, "activation_checkpointing_enable", None)  # renamed in 5.2x
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def step(batch: Any) -> None:
        if row == "float_and_teacher":
            with torch.no_grad():
                teacher(input_ids=batch, use_cache=False)
        for part in batch.chunk(parts):
            inputs = {"input_ids": part, "sample": torch.zeros(part.shape, dtype=torch.int64)}
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = objective(model, inputs)["loss"]
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=parts == 1)

    return step


class Answers:
    """What a teacher has said (coreset/float_outputs): `kept` tokens for every token of a batch."""

    def __init__(self, kept: int, vocabulary: int) -> None:
        self.kept, self.vocabulary = kept, vocabulary

    def of(self, tokens: Any, _: Any) -> tuple[Any, Any]:
        """Log-probabilities and token numbers (B, T, K) for `tokens` (B, T)."""
        import torch

        shape = (*tokens.shape, self.kept)
        numbers = torch.randint(0, self.vocabulary // self.kept, shape)
        numbers += torch.arange(self.kept) * (self.vocabulary // self.kept)  # all different
        return torch.randn(shape).log_softmax(-1) - 0.2, numbers


if __name__ == "__main__":
    main()
