"""Top-1 and top-5 accuracy of an image classifier, in percent.

Legend: N images.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeqat.data.images import Images, Normalizer
from edgeqat.nn.folding import inference
from edgeqat.nn.logits import class_logits

_TOP = 5


def accuracy(model: nn.Module, images: Images, normalizer: Normalizer) -> dict[str, float]:
    """{"top1", "top5"} of a model in eval mode on clean images (N)."""
    device = next(model.parameters()).device
    right = torch.zeros(2, dtype=torch.int64)
    parts = (values.split(images.at_once) for values in (images.pixels, images.labels))
    with inference(model) as ready:
        for pixels, labels in zip(*parts, strict=True):
            logits = class_logits(ready, normalizer(pixels.to(device)))
            best = logits.topk(min(_TOP, logits.shape[-1]), dim=-1).indices.cpu()
            hits = best == labels[:, None]
            right += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
    first, any_of_five = (100 * right.double() / len(images)).tolist()
    return {"top1": round(first, 4), "top5": round(any_of_five, 4)}


def same_top(one: nn.Module, other: nn.Module, images: Images, normalizer: Normalizer) -> float:
    """How often two models in eval mode give images (N) the same class, in percent."""
    same = 0
    with inference(one) as first, inference(other) as second:
        for pixels in images.pixels.split(images.at_once):
            inputs = normalizer(pixels)
            classes = [class_logits(model, inputs).argmax(-1) for model in (first, second)]
            same += int((classes[0] == classes[1]).sum())
    return round(100 * same / len(images), 4)


def recovered(floating: float, ptq: float, qat: float) -> float | None:
    """(qat - ptq) / (float - ptq) in top-1; None when PTQ loses nothing."""
    return (qat - ptq) / (floating - ptq) if floating > ptq else None
