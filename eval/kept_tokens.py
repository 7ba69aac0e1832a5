"""How much of a teacher its K most probable tokens hold: probability, KL, and the cosine of the
gradient with that of the whole teacher.

usage: python eval/kept_tokens.py MODEL --data TEXT [--scheme w4a8kv4] [--group-size 64]

The student is MODEL with weights rounded to the nearest; nothing is trained or written.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from edgeqat.losses.distill import Kept, Teacher, distill
from edgeqat.pipeline.load import load_task
from edgeqat.pipeline.preparation import fake_quantized
from edgeqat.recipe.recipe import Recipe

BLOCKS, CONTEXT = 2, 512
KEPT = (4, 16, 64, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--scheme", default="w4a8kv4")
    parser.add_argument("--group-size", type=int, default=64)
    options = parser.parse_args()
    weight = {"group_size": options.group_size, "init": "mse"}
    recipe = Recipe.model_validate(
        {
            "model": {"name": options.model},
            "quant": {"scheme": options.scheme, "weight": weight},
            "data": {"train": options.data, "context": CONTEXT},
        }
    )
    task = load_task(recipe)
    ids = task.valid.ids[:BLOCKS]
    student = fake_quantized(task, recipe.quant)
    taught, logits = (_logits(model, ids) for model in (task.model, student))
    head = student.get_output_embeddings().weight.detach()
    whole, expected = _gradient(logits, taught, ids.flatten())
    log_p = taught.log_softmax(-1)
    for count in KEPT:
        values, tokens = log_p.topk(count, dim=-1)
        kl, gradient = _gradient(logits, Kept(values.half(), tokens), ids.flatten())
        cosines = [
            torch.cosine_similarity(one.flatten(), other.flatten(), 0).item()
            for one, other in ((gradient, expected), (gradient @ head, expected @ head))
        ]
        print(
            f"K {count:5}  probability {values.exp().sum(-1).mean():.3f}  KL {kl:.3f}  cosine of "
            f"logits {cosines[0]:.3f}, of hidden states {cosines[1]:.3f}"
        )
    print(f"all      probability 1.000  KL {whole:.3f}")


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits.flatten(0, 1)


def _gradient(logits: Tensor, teacher: Teacher, labels: Tensor) -> tuple[float, Tensor]:
    """KL to a teacher, and its gradient in the student's logits (N, V)."""
    student = logits.clone().requires_grad_()
    loss, _, divergence = distill(student, teacher, labels, 1.0)
    return divergence.item(), torch.autograd.grad(loss, student)[0]


if __name__ == "__main__":
    main()
