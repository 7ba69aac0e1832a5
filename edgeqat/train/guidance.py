"""Guidance on query and key: the terms `entropy` and `distribution` of the objective, from the taps
of student and teacher (losses/entropy, losses/distribution).

The teacher's queries and keys are brought into the student's basis (its rotation, its key offset)
before variances are compared; attention rows are the same in every basis. Statistics are float32,
outside autocast. Rows are drawn from the step, so that every process and micro-batch of a step
compares the same ones.

Legend: L layers, B batch, T tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgeqat.errors import RecipeError
from edgeqat.hf import attention
from edgeqat.losses import distribution, entropy
from edgeqat.nn.attention import real_tokens
from edgeqat.nn.taps import Tap, capture
from edgeqat.recipe.train import GuideSection

Taps = dict[int, Tap]
_SHAPE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


class Guidance:
    """Guidance terms of a recipe's section `guide`; a term of weight zero is not computed."""

    def __init__(self, guide: GuideSection) -> None:
        self.entropy, self.distribution = guide.entropy, guide.distribution
        self.is_on = self.entropy.weight > 0 or self.distribution.weight > 0
        gap = self.entropy.weight > 0 and self.entropy.form == "gap"
        self.needs_teacher = gap or self.distribution.weight > 0

    def check(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Refuse layers that the student has not and a teacher of another attention shape; lets the
        teacher's attention be tapped.
        """
        if not self.is_on or not isinstance(student, PreTrainedModel):
            return
        count = student.config.num_hidden_layers
        for name in ("entropy", "distribution"):
            for layer in getattr(self, name).layers or ():
                if not 0 <= layer < count:
                    raise RecipeError(
                        f"guide.{name}.layers: {layer} is no layer of the model, which has {count} "
                        f"(0 to {count - 1})"
                    )
        if not self.needs_teacher or not isinstance(teacher, PreTrainedModel):
            return
        for field in _SHAPE:
            model_value, teacher_value = (
                getattr(m.config, field, None) for m in (student, teacher)
            )
            if model_value != teacher_value:
                raise RecipeError(
                    f"guide: the teacher's {field} is {teacher_value}, the model's {model_value}; "
                    "guidance compares heads one by one: use a teacher of its shape or guide "
                    "weights of 0"
                )

    def capture(self, model: nn.Module) -> AbstractContextManager[Taps]:
        """Taps of a model's forward pass; a float model's attention becomes ours, which changes
        nothing.
        """
        if isinstance(model, PreTrainedModel) and model.config._attn_implementation != (
            attention.NAME
        ):
            attention.register()
            model.set_attn_implementation(attention.NAME)
        return capture()

    def terms(self, student: Taps, teacher: Taps, step: int) -> dict[str, Tensor]:
        """The guidance terms that have a weight, unweighted, by name."""
        terms: dict[str, Tensor] = {}
        device = next(iter(student.values())).query.device
        with torch.autocast(device.type, enabled=False):
            if self.entropy.weight > 0:
                terms["entropy"] = self._entropy(student, teacher)
            if self.distribution.weight > 0:
                terms["distribution"] = self._distribution(student, teacher, step)
        return terms

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """What the terms add to the loss."""
        return sum(
            (getattr(self, name).weight * term for name, term in terms.items()),
            start=torch.zeros((), device=next(iter(terms.values())).device),
        )

    def _entropy(self, student: Taps, teacher: Taps) -> Tensor:
        layers = _chosen(student, self.entropy.layers)
        queries, keys, targets = [], [], []
        for layer in layers:
            tap = student[layer]
            keep = _real_tokens(tap)
            queries.append(entropy.variance(tap.query, keep))
            keys.append(entropy.variance(tap.key, keep))
            if self.entropy.form == "gap":
                query, key = teacher[layer].query, teacher[layer].key
                if tap.quantizer is not None:
                    query, key = tap.quantizer.basis(query, key)
                heads = [entropy.variance(query, keep), entropy.variance(key, keep)]
                targets.append(torch.cat(heads, dim=-1))
        query, key = torch.stack(queries), torch.stack(keys)
        if self.entropy.form == "paper":
            return entropy.paper_entropy(query, key)
        return entropy.entropy_gap(torch.cat([query, key], dim=-1), torch.stack(targets))

    def _distribution(self, student: Taps, teacher: Taps, step: int) -> Tensor:
        layers = _chosen(student, self.distribution.layers)
        total = []
        for layer in layers:
            tap, teacher_tap = student[layer], teacher[layer]
            tokens, device = tap.query.shape[2], tap.query.device
            rows = distribution.sample_rows(tokens, self.distribution.rows, step, device)
            keep = _real_tokens(tap)
            distance = distribution.row_distance(
                distribution.row_logits(tap.query, tap.key, rows, tap.mask, tap.scale),
                distribution.row_logits(
                    teacher_tap.query, teacher_tap.key, rows, teacher_tap.mask, teacher_tap.scale
                ),
                self.distribution.form,
                None if keep is None else keep[:, rows],
            )
            total.append(distance)
        return torch.stack(total).mean()


def _chosen(taps: Taps, layers: list[int] | None) -> list[int]:
    return sorted(taps) if layers is None else sorted(set(layers))


def _real_tokens(tap: Tap) -> Tensor | None:
    """Which tokens (B, T) are no padding; None: all of them."""
    return None if tap.mask is None else real_tokens(tap.key.shape[2], tap.query, tap.mask)
