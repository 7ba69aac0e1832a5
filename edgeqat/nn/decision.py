"""What happens to each layer of a model, decided once: prepare, convert, the loader and the dry
run's table all read it.

Every nn.Linear except lm_head is quantized by the scheme, embeddings and lm_head get
`embedding_bits` one scale a row. Convolutions have one scale a channel and learned activation
scales; the first one and the classifier of an image model follow `quant.edges`. A layer is skipped
with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from torch import fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from edgeqat.families import HEADS
from edgeqat.nn import residual
from edgeqat.nn.half import HalfLinear
from edgeqat.nn.heads import output_name, separate_heads
from edgeqat.nn.linear import ScaledEmbedding
from edgeqat.nn.packed import PackedLinear, PackedWeight
from edgeqat.quant.hadamard import INPUT_BLOCK, block_size
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS

HEAD_INPUT_BITS = 8
_EDGE_BITS = 8
_PATCHES = "patch_embedding"
_FORWARDS = (
    nn.Linear.forward, nn.Conv2d.forward, nn.Embedding.forward, HalfLinear.forward,
    ScaledEmbedding.forward,
)  # fmt: skip

NOT_SUPPORTED = "is not supported"  # the end of a reason that nobody chose


@dataclass(frozen=True)
class Decision:
    """What happens to one layer: its widths, or why it stays float."""

    bits: int = FLOAT_BITS
    granularity: str = ""
    group_size: int | None = None
    input_bits: int = FLOAT_BITS
    input_mode: str = "dynamic"
    rotation: int = 0
    reason: str = ""


def rule(name: str, layer: Any, quant: QuantSection, edge: bool = False) -> Decision:
    """The decision for one nn.Linear, nn.Conv2d or nn.Embedding of a model; `edge`: an image
    model's first convolution or classifier.
    """
    scheme, head = quant.bits(), quant.bits_of(name, quant.head_bits())
    for pattern in quant.skip:
        if fnmatch(name, pattern):
            return Decision(reason=f"skip: '{pattern}'")
    if _PATCHES in name:
        return Decision(reason="transformers casts pixels to the type of its weight")
    unlike = _unlike(layer)
    if unlike:
        return Decision(reason=f"{unlike} {NOT_SUPPORTED}")
    kept = "embedding_bits is float" if head == FLOAT_BITS else ""
    if isinstance(layer, nn.Embedding):
        return Decision(head, *grouping(head, quant, True), reason=kept)
    if name.rpartition(".")[2] in HEADS:
        inputs = HEAD_INPUT_BITS if scheme.activation_bits < FLOAT_BITS else FLOAT_BITS
        return Decision(head, *grouping(head, quant, True), input_bits=inputs, reason=kept)
    bits = quant.bits_of(name, scheme.weight_bits)
    if isinstance(layer, nn.Conv2d) or edge:
        return _image_decision(name, layer, quant, edge)
    quantized = min(scheme.weight_bits, scheme.activation_bits) < FLOAT_BITS
    return Decision(
        bits,
        *grouping(bits, quant, False),
        scheme.activation_bits,
        quant.activation.mode,
        _rotation(layer) if quantized and quant.rotates(name) else 0,
        "weights are float in this scheme" if scheme.weight_bits == FLOAT_BITS else "",
    )


def grouping(bits: int, quant: QuantSection, of_tokens: bool) -> tuple[str, int | None]:
    """Granularity and group size of a weight; `of_tokens`: an embedding or head, whose rows have
    one scale at 8 bit.
    """
    if of_tokens and bits >= HIGH_BITS:
        return "per_channel", None
    weight = quant.weight
    return weight.granularity, weight.group_size if weight.granularity == "per_group" else None


def _image_decision(name: str, layer: Any, quant: QuantSection, edge: bool) -> Decision:
    """One scale a channel (or one in all) and learned activation scales, as convolutions need."""
    scheme = quant.bits()
    if edge and quant.edges == "float":
        return Decision(reason="first or last layer: quant.edges is float")
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or _named(layer.padding)):
        return Decision(
            reason=f"padding '{layer.padding}' of mode '{layer.padding_mode}' {NOT_SUPPORTED}"
        )
    least = _EDGE_BITS if edge and quant.edges == "8bit" else 0
    bits = quant.bits_of(name, max(scheme.weight_bits, least))
    return Decision(
        bits,
        "per_tensor" if quant.weight.granularity == "per_tensor" else "per_channel",
        input_bits=max(scheme.activation_bits, least),
        input_mode="static" if quant.activation.mode == "dynamic" else quant.activation.mode,
        reason="weights are float in this scheme" if bits == FLOAT_BITS else "",
    )


def decisions(model: nn.Module, quant: QuantSection) -> list[tuple[str, Any, Decision]]:
    """Every layer of a model with its name and decision."""
    ends, shared, outside, entries = edges(model), _shared(model), _read_outside(model), []
    even = residual.reads_residual(model) if rotates_residual(model, quant) else set()
    if quant.balances and quant.bits().weight_bits < FLOAT_BITS:
        even |= {f"{name}.{output_name(heads)}" for name, heads in separate_heads(model)}
    for name, layer in layers(model):
        decision = rule(name, layer, quant, name in ends)
        if name in even:
            decision = replace(decision, rotation=0)
        if id(layer) in shared and not decision.reason:
            decision = Decision(reason=f"a layer or weight in two places {NOT_SUPPORTED}")
        if name in outside and not decision.reason:
            decision = Decision(reason=f"a weight read outside its layer {NOT_SUPPORTED}")
        entries.append((name, layer, decision))
    return entries


def rotates_residual(model: nn.Module, quant: QuantSection) -> bool:
    """Whether the residual stream of a model is rotated; llama.cpp has no place for what that
    leaves before a tied head.
    """
    scheme = quant.bits()
    quantized = min(scheme.weight_bits, scheme.activation_bits) < FLOAT_BITS
    wanted = quantized and quant.rotate_residual
    return wanted and residual.can_rotate(model, tied=not quant.kv.llama_cpp)


def edges(model: nn.Module) -> set[str]:
    """Names of the first convolution and the last linear layer of an image model; else none."""
    convolutions = [
        name
        for name, layer in layers(model)
        if isinstance(layer, nn.Conv2d) or (getattr(layer, "spec", None) and layer.spec.convolution)
    ]
    if not convolutions:
        return set()
    kinds = (nn.Linear, PackedLinear)
    linear = [name for name, layer in layers(model) if isinstance(layer, kinds)]
    return {convolutions[0], *linear[-1:]}


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all linear layers, convolutions and embeddings, packed or not."""
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding, PackedWeight)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            yield name, module


def _unlike(layer: Any) -> str:
    """What of a layer would be lost with a quantized one in its place; "" for nothing."""
    if isinstance(layer, PackedWeight):
        return ""
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "a weight that attention reads past its layer"
    if "weight" not in layer._parameters:
        return "a weight computed from others"
    if "forward" in vars(layer):
        return "a forward pass set on the layer"
    if layer._load_state_dict_pre_hooks:
        return "a hook on loading its state"
    if getattr(layer, "max_norm", None) is not None:
        return "max_norm"
    kind = type(layer)
    return "" if kind.forward in _FORWARDS else f"a forward pass of {kind.__name__}'s own"


def _shared(model: nn.Module) -> set[int]:
    """Ids of the layers that have two names, or a weight with another one (but a head's with its
    embedding).
    """
    kinds = (nn.Linear, nn.Conv2d)
    every = [m for _, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)]
    names = Counter(map(id, every))
    weights = {id(layer): id(layer._parameters.get("weight", layer)) for layer in every}
    owners = Counter(weights.values())
    return {layer for layer in names if names[layer] > 1 or owners[weights[layer]] > 1}


def _read_outside(model: nn.Module) -> set[str]:
    """Names of layers whose weight the forward pass of a user's network reads without calling
    them, where it can be traced; else nn/reach finds them when it runs.
    """
    if hasattr(model, "config"):  # transformers' take no symbols
        return set()
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever a forward pass makes of symbols
        return set()
    reads = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return {name.rpartition(".")[0] for name in reads if name.endswith(".weight")}


def _named(padding: Any) -> bool:
    return isinstance(padding, str)  # "same" and "valid" stand for numbers that a folder needs


def _rotation(layer: Any) -> int:
    block = block_size(int(layer.weight.shape[1]), INPUT_BLOCK)
    return block if block > 1 else 0
