"""Selecting a coreset: score every sample with the student in eval mode, keep the highest.

The float model's outputs come from their cache (coreset/float_outputs), so a selection costs one
forward pass of the student over the samples, spread over the processes. Random selection and scores
of the float model alone cost none.

Legend: N samples, M of them selected. Sources: coreset/scores, coreset/select.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeqat.coreset import scores, select
from edgeqat.coreset.float_outputs import FloatOutputs
from edgeqat.coreset.samples import Samples
from edgeqat.coreset.scores import SCORES, Outputs, Score
from edgeqat.errors import UsageError
from edgeqat.nn.features import last_inputs
from edgeqat.nn.folding import inference
from edgeqat.recipe.data import CoresetSection
from edgeqat.seeds import mixed
from edgeqat.train import processes

UNLABELLED = (*(name for name, score in SCORES.items() if not score.labelled), "random")
CLASSIFIERS = ("moderate", "forgetting")  # scores that need classes
BALANCED_BELOW = 0.05
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_BINS = 40


class Chosen(NamedTuple):
    """Ascending indices (M,) and what a selection tells of itself (JSON values)."""

    indices: Tensor
    summary: dict[str, Any]


def needs_outputs(section: CoresetSection) -> bool:
    """Whether a selector compares with the float model's outputs."""
    score = SCORES.get(section.selector)
    return score is not None and score.compares


class Selection:
    """Chooses round(share * N) samples for a student, as a recipe's section `coreset` says."""

    def __init__(
        self,
        section: CoresetSection,
        samples: Samples,
        teacher: nn.Module,
        seed: int,
    ) -> None:
        assert section.share is not None
        check(section, samples)
        self.section, self.samples = section, samples
        self.outputs: FloatOutputs | None = None  # given where needs_outputs() says so
        self.teacher: nn.Module | None = teacher
        self.seed, self.share = seed, section.share
        balanced = section.balanced
        if balanced is None:
            balanced = samples.classes is not None and section.share < BALANCED_BELOW
        self.classes = samples.classes if balanced else None
        if self.classes is not None:
            top = select.top(self.count, section.random_share)
            select.check_balance(self.classes, top)
        self.fixed: Tensor | None = None  # scores that do not change; of `forgetting` given

    @property
    def count(self) -> int:
        """How many samples are selected (M)."""
        return select.size(len(self.samples), self.share)

    def __call__(
        self, student: nn.Module, progress: float, turn: int, before: Tensor | None = None
    ) -> Chosen:
        """Select at `progress` (0 to 1) of the training, for the `turn`-th time; `before` is the
        last selection.
        """
        start = time.perf_counter()
        seed = mixed(self.seed, turn)
        values, accuracy = self.score(student, progress, seed)
        index = select.select(values, self.share, self.classes, self.section.random_share, seed)
        summary: dict[str, Any] = {
            "selector": self.section.selector,
            "samples": len(self.samples),
            "selected": len(index),
            "scores": _distribution(values),
            "selected_scores": _distribution(values[index]),
            "histogram": _histogram(values, index),
            "accuracy": accuracy,
            "overlap": None if before is None else round(select.overlap(index, before), 4),
            "seconds": round(time.perf_counter() - start, 3),
        }
        if self.samples.classes is not None:
            summary["classes"] = torch.bincount(self.samples.classes[index]).tolist()
        return Chosen(index, summary)

    def score(self, student: nn.Module, progress: float, seed: int) -> tuple[Tensor, float | None]:
        """Scores (N,) and, where the student was run, its accuracy over all samples in percent."""
        selector = self.section.selector
        if selector == "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(len(self.samples), generator=generator), None
        if selector in ("el2n", "moderate", "forgetting"):
            if self.fixed is None:
                assert selector != "forgetting", "forgetting needs its trial"
                self.fixed = self._scores_of_teacher()
            return self.fixed, None
        score = SCORES[selector]
        parts, correct = self._parts_of_student(student, score)
        values = score.combine(*parts, progress)
        return values, None if correct is None else round(100 * correct.mean().item(), 3)

    def _parts_of_student(
        self, student: nn.Module, score: Score
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        samples = self.samples
        rows = []
        samples.recalibrate_batch_norms(student)
        with inference(student) as ready:
            for index in processes.shard(len(samples)).split(samples.at_once):
                logits = samples.logits(ready, index).float()
                labels = samples.labels(index).to(logits.device)
                teacher_outputs: tuple[Tensor, Tensor | None] | None = None
                if self.outputs is not None:
                    teacher_outputs = self.outputs.of(index, logits.device)
                outputs = Outputs(logits, labels, teacher_outputs)
                right = (logits.argmax(-1) == labels).float()
                parts = [part(outputs) for part in score.parts]
                parts.append(scores.per_sample(right, outputs.tokens))
                rows.append(torch.stack(parts, dim=1))
        columns = processes.gathered(torch.cat(rows), len(samples)).unbind(1)
        correct = columns[-1] if samples.labelled else None
        return columns[:-1], correct

    def _scores_of_teacher(self) -> Tensor:
        samples, moderate = self.samples, self.section.selector == "moderate"
        rows = []
        none: AbstractContextManager[list[Tensor]] = nullcontext([])
        assert self.teacher is not None
        with (
            inference(self.teacher) as ready,
            last_inputs(ready) if moderate else none as features,
        ):
            for index in processes.shard(len(samples)).split(samples.at_once):
                logits = samples.logits(ready, index)
                labels = samples.labels(index).to(logits.device)
                rows.append(features[0] if moderate else scores.el2n([logits], labels))
        values = processes.gathered(torch.cat(rows), len(samples)).float()
        if moderate:
            assert samples.classes is not None
            return scores.moderate(values, samples.classes)
        return values


def check(section: CoresetSection, samples: Samples) -> None:
    """Refuse a selector that the samples cannot serve."""
    if not samples.labelled and section.selector not in UNLABELLED:
        raise UsageError(
            f"coreset.selector: '{section.selector}' needs labels and the data has none; choose "
            f"{', '.join(UNLABELLED[:-1])} or {UNLABELLED[-1]}"
        )
    if samples.classes is None and section.selector in CLASSIFIERS:
        raise UsageError(
            f"coreset.selector: '{section.selector}' needs samples with classes, and blocks of "
            "text have none; choose res or quarc"
        )
    if samples.classes is None and section.balanced:
        raise UsageError(
            "coreset.balanced: true needs labelled images; leave it out to select by score alone"
        )


def _histogram(values: Tensor, index: Tensor) -> dict[str, list[float]]:
    """Edges of equal bins over all scores, and how many samples, and selected ones, are in each."""
    values = values.detach().float().cpu()
    counts, edges = torch.histogram(values, _BINS)
    selected, _ = torch.histogram(values[index.cpu()], edges)
    return {
        "edges": [round(edge, 6) for edge in edges.tolist()],
        "all": counts.int().tolist(),
        "selected": selected.int().tolist(),
    }


def _distribution(values: Tensor) -> dict[str, Any]:
    """Mean and quartiles, rounded."""
    points = torch.quantile(values.double(), torch.tensor(_QUANTILES, dtype=torch.float64))
    return {
        "mean": round(values.double().mean().item(), 6),
        "quartiles": [round(point, 6) for point in points.tolist()],
    }
