"""How far a model is from the float model, block by block, against float logits in a file.

    perplexity   exp of the mean negative log-likelihood of the text
    kl           KL(float || model) per predicted token in nats, mean over all tokens
    kl_p99       its 99th percentile
    same_top     share of tokens whose most likely token is the float model's, in percent

The float logits (N, T - 1, V) are float32 in a file that is mapped, so that memory holds those of
one block.

Legend: N blocks, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeqat.output import whole_file

_MAX_NATS = 700.0  # exp of more overflows a float
_AT_ONCE = 256  # tokens: of large vocabularies a block of logits is a gigabyte


class Scores:
    """Sums over blocks; without a reference perplexity alone."""

    def __init__(self, reference: Path | None = None) -> None:
        self._reference = None if reference is None else np.load(reference, mmap_mode="r")
        self._blocks = self._tokens = self._same = 0
        self._loss = 0.0
        self._divergences: list[Tensor] = []

    def add(self, ids: Tensor, logits: Tensor) -> None:
        """Count the next block: ids (T,), and the logits (T, V) that a model gives them."""
        labels, logits = ids[1:], logits[:-1]
        for start in range(0, len(labels), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._add(labels[part], logits[part].float(), part)
        self._blocks += 1

    def _add(self, labels: Tensor, logits: Tensor, part: slice) -> None:
        log_q = logits.log_softmax(-1)
        self._loss += F.nll_loss(log_q, labels, reduction="sum").double().item()
        self._tokens += len(labels)
        if self._reference is None:
            return
        target = torch.from_numpy(np.array(self._reference[self._blocks, part]))
        log_q = log_q[:, : target.shape[-1]]  # more rows are padding of the vocabulary
        log_p = target.log_softmax(-1)
        self._divergences.append(torch.linalg.vecdot(log_p.exp(), log_p - log_q))
        self._same += int((target.argmax(-1) == log_q.argmax(-1)).sum())

    def result(self) -> dict[str, Any]:
        """What the module's docstring lists."""
        scores = {"perplexity": math.exp(min(self._loss / self._tokens, _MAX_NATS))}
        if self._divergences:
            values = torch.cat(self._divergences).double()
            scores["kl"] = values.mean().item()
            scores["kl_p99"] = float(np.quantile(values.numpy(), 0.99))
            scores["same_top"] = 100 * self._same / self._tokens
        return scores


@torch.inference_mode()
def scored(model: Any, ids: Tensor, reference: Path) -> dict[str, Any]:
    """The scores of a causal language model of torch on blocks ids (N, T), in one pass each."""
    scores = Scores(reference)
    for row, logits in zip(ids, _logits(model, ids), strict=True):
        scores.add(row, logits)
    return scores.result()


@torch.inference_mode()
def write_reference(file: Path, model: Any, ids: Tensor) -> dict[str, Any]:
    """Write the logits of the float model on blocks ids (N, T); returns its scores."""
    blocks, tokens = ids.shape
    shape = (blocks, tokens - 1, model.config.vocab_size)
    scores = Scores()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with whole_file(file) as part, open(part, "wb") as kept:
        np.lib.format.write_array_header_1_0(kept, header)
        for row, logits in zip(ids, _logits(model, ids), strict=True):
            scores.add(row, logits)
            kept.write(logits[:-1].float().numpy().astype("<f4", copy=False).tobytes())
    return {**scores.result(), "kl": 0.0, "kl_p99": 0.0, "same_top": 100.0}


def _logits(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """Logits (T, V) of one block after the other."""
    model.eval()
    for row in ids:
        yield model(input_ids=row[None], use_cache=False).logits[0]
