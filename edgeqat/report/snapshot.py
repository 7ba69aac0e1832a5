"""A snapshot of a model on one held-out text: what the report draws, of the float model, of PTQ and
of QAT.

    q, k        histograms of queries and keys after RoPE, per layer and head
    attention   attention maps of the first tokens, for some layers and heads
    importance  attention that a token pays to the first one, mean over heads, per layer
    hidden      outputs of the decoder layers, to tell how far the others are from the float model

Quantized queries and keys are turned back into the float model's basis (the rotation undone, the
key offset added), so that the three are drawn over one another. The text is one block: a few
hundred tokens through each model, whatever the size of the run.

Legend: L layers, N query heads, K key heads, T tokens, S tokens of a map, B bins, D head_dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeqat.errors import FormatError
from edgeqat.hf import attention
from edgeqat.losses.distribution import row_logits
from edgeqat.nn.blocks import tapped
from edgeqat.nn.taps import Tap, capture

FILE = "report_data.npz"
STAGES = ("float", "ptq", "qat")
_TOKENS, _SHOWN = 256, 40
_BINS, _SPREAD = 48, 4.0  # histograms reach to 4 standard deviations of the float model
_LAYERS, _HEADS = 4, 4

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def take(model: Any, ids: Tensor, names: list[str], edges: Arrays | None = None) -> Arrays:
    """Arrays of a model on token ids (T,); `names` are its decoder layers, `edges` the bins that
    the float model's snapshot has chosen (None: this is the float model).
    """
    was_training, kept = model.training, model.config._attn_implementation
    if kept != attention.NAME:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    try:
        with capture() as taps, tapped(model.eval(), names) as hidden:
            model(input_ids=ids[None, :_TOKENS].to(model.device), use_cache=False)
    finally:
        model.train(was_training)
        if kept != attention.NAME:
            model.set_attn_implementation(kept)
    heads = [_float_basis(taps[layer]) for layer in sorted(taps)]
    arrays = {"hidden": torch.stack(hidden).squeeze(1).half().cpu().numpy()}
    for name, values in zip(("q", "k"), zip(*heads, strict=True), strict=True):
        layers = [value[0].float().cpu().numpy() for value in values]
        arrays[f"{name}_edges"] = _edges(layers) if edges is None else edges[f"{name}_edges"]
        arrays[name] = _histograms(layers, arrays[f"{name}_edges"])
    chosen = shown_layers(len(heads))
    maps = [_attention(taps[layer]) for layer in sorted(taps)]
    arrays["attention"] = np.stack([maps[layer][:_HEADS, :_SHOWN, :_SHOWN] for layer in chosen])
    arrays["importance"] = np.stack(
        [attention_map[:, :_SHOWN, 0].mean(0) for attention_map in maps]
    )
    return arrays


def shown_layers(count: int) -> list[int]:
    """Numbers of the layers whose attention is shown: evenly spaced, first and last among them."""
    return sorted({round(n * (count - 1) / (_LAYERS - 1)) for n in range(_LAYERS)})


def assemble(stages: dict[str, Arrays], names: list[str], tokens: list[str]) -> Arrays:
    """What the report needs of the snapshots by stage (STAGES), in one set of small arrays."""
    first = stages["float"]
    arrays = {
        "tokens": np.array(tokens[:_SHOWN], dtype=np.str_),
        "blocks": np.array(names, dtype=np.str_),
        "layers": np.array(shown_layers(len(names))),
        "q_edges": first["q_edges"],
        "k_edges": first["k_edges"],
        "importance": stages["qat"]["importance"].astype(np.float16),
    }
    power = np.square(first["hidden"].astype(np.float64)).sum(axis=(1, 2))
    for stage, stage_arrays in stages.items():
        for part in ("q", "k"):
            arrays[f"{part}_{stage}"] = stage_arrays[part]
        arrays[f"attention_{stage}"] = stage_arrays["attention"].astype(np.float16)
        error = stage_arrays["hidden"].astype(np.float64) - first["hidden"].astype(np.float64)
        arrays[f"error_{stage}"] = np.square(error).sum(axis=(1, 2)) / power
    return arrays


def save(path: Path, arrays: Arrays) -> None:
    """Write arrays, compressed."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Arrays:
    """Read arrays; a damaged file is a FormatError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FormatError(
            f"{path.name}: '{path}' cannot be read ({error}); copy the folder again"
        ) from None


def _float_basis(tap: Tap) -> tuple[Tensor, Tensor]:
    """q (1, N, T, D) and k (1, K, T, D) of a tap in the float model's basis."""
    if tap.quantizer is None:
        return tap.query, tap.key
    return tap.quantizer.float_basis(tap.query, tap.key)


def _edges(layers: list[np.ndarray]) -> np.ndarray:
    """Edges (L, B + 1) of the bins of each layer."""
    spread = [_SPREAD * max(float(values.std()), 1e-6) for values in layers]
    return np.stack([np.linspace(-limit, limit, _BINS + 1) for limit in spread]).astype(np.float32)


def _histograms(layers: list[np.ndarray], edges: np.ndarray) -> np.ndarray:
    """Counts (L, heads, B) of values (heads, T, D) of each layer; what is outside counts at the
    ends.
    """
    counts = []
    for heads, bins in zip(layers, edges, strict=True):
        rows = [np.histogram(np.clip(head, bins[0], bins[-1]), bins)[0] for head in heads]
        counts.append(np.stack(rows))
    return np.stack(counts).astype(np.uint32)


def _attention(tap: Tap) -> np.ndarray:
    """Attention probabilities (N, S, S) of the first tokens."""
    tokens = min(tap.query.shape[2], _SHOWN)
    rows = torch.arange(tokens, device=tap.query.device)
    logits = row_logits(tap.query, tap.key, rows, tap.mask, tap.scale)
    return logits.softmax(-1)[0, :, :, :tokens].cpu().numpy()
