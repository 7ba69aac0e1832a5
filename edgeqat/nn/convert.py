"""prepare (float -> fake-quant), convert (fake-quant -> packed), restore (either -> float): modules
swapped by rule.

Not here: which layer gets what (decision), attention's entry into transformers (hf/attention),
files (checkpoint).
"""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from typing import Any

from torch import nn

from edgeqat.errors import ModelError, RecipeError
from edgeqat.families import HEADS, family_of
from edgeqat.nn import head_balance, reach, residual, token_importance
from edgeqat.nn.adaptive import AdaptiveQuantizer
from edgeqat.nn.attention import IMPLEMENTATION, AttentionQuantizer, adapted
from edgeqat.nn.conv import PackedConv2d, QuantConv2d, geometry, plain_convolution
from edgeqat.nn.decision import NOT_SUPPORTED, Decision, decisions, layers, rotates_residual
from edgeqat.nn.layers import attentions, head_sizes, replace
from edgeqat.nn.linear import QuantEmbedding, QuantLinear, ScaledEmbedding, SharedInput
from edgeqat.nn.packed import PackedEmbedding, PackedLinear, PackedSpec, PackedWeight
from edgeqat.nn.token_importance import TokenImportance
from edgeqat.quant.activation_modes import input_quantizer, mode_of
from edgeqat.quant.dynamic import DynamicQuantizer
from edgeqat.quant.hadamard import rotate
from edgeqat.quant.lowrank import LowRankQuantizer
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.quant.minmax import MinMaxWeightQuantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS

logger = logging.getLogger(__name__)

_OTHERS = (nn.modules.conv._ConvNd, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention)

_PACKED: dict[str, type[PackedWeight]] = {
    "linear": PackedLinear,
    "embedding": PackedEmbedding,
    "convolution": PackedConv2d,
}


def prepare(model: nn.Module, quant: QuantSection) -> nn.Module:
    """Swap the layers of a float model for fake-quantized ones, in place; scales start at MSE."""
    if is_quantized(model):
        raise ModelError("model: already prepared or packed; start from the float model")
    embeddings: dict[int, QuantEmbedding] = {}
    if rotates_residual(model, quant):
        residual.rotate_residual(model)
    entries = decisions(model, quant)
    if entries and not entries[0][0]:
        raise ModelError(
            f"model: a {type(model).__name__} alone cannot be swapped in place; put it into an "
            "nn.Sequential"
        )
    _keep_to_layers(model)
    for field, patterns in (("skip", quant.skip), ("layer_bits", quant.layer_bits)):
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name, _ in model.named_modules()):
                raise RecipeError(
                    f"quant.{field}: '{pattern}' matches no layer of this model; look at the names "
                    "that --dry-run prints"
                )
    for name, layer, decision in sorted(entries, key=lambda e: not isinstance(e[1], nn.Embedding)):
        if isinstance(layer, nn.Embedding):
            if decision.bits < FLOAT_BITS:
                weights = _weight_quantizer(name, layer, decision, quant)
                embedding = QuantEmbedding.wrap(layer, weights)
                embeddings[id(layer.weight)] = embedding
                replace(model, name, embedding)
        elif decision.bits < FLOAT_BITS or decision.input_bits < FLOAT_BITS:
            replace(model, name, _quant_layer(name, layer, decision, quant, embeddings))
    unknown = [
        f"{name} ({decision.reason})"
        for name, _, decision in entries
        if decision.reason.endswith(NOT_SUPPORTED)
    ]
    unknown += [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _OTHERS) and not isinstance(module, nn.Conv2d)
    ]
    if unknown:
        logger.warning("left in float: %s", ", ".join(unknown))
    _share_inputs(model)
    add_attention_quantizers(model, quant)
    if quant.balances:
        head_balance.make_ready(model)
    if not quant.bits().is_float and not (is_quantized(model) or any(attentions(model))):
        raise ModelError(
            f"model: {quant.scheme} quantizes nothing in a {type(model).__name__}; look at "
            "quant.skip and quant.edges, or give it Linear or Conv2d layers"
        )
    adapt(model, quant)
    reach.watch_weights(model)
    return model


def _keep_to_layers(model: nn.Module) -> None:
    """Switch off torch's fast paths for transformers, which read weights past their layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def differ(model: nn.Module, one: QuantSection, other: QuantSection) -> bool:
    """Whether two sections prepare a float model differently."""
    cache = one.kv != other.kv and any(attentions(model))
    scales = [(quant.weight.scale, quant.weight.init) for quant in (one, other)]
    scaled = scales[0] != scales[1] and one.bits().weight_bits < FLOAT_BITS
    return cache or scaled or decisions(model, one) != decisions(model, other)


def convert(model: nn.Module) -> nn.Module:
    """Swap fake-quantized layers for packed ones, in place: the learned integers and scales."""
    token_importance.check_thresholds(model)
    embeddings: dict[int, tuple[str, PackedEmbedding]] = {}
    for name, layer in list(layers(model)):
        if not isinstance(layer, (QuantEmbedding, QuantLinear, QuantConv2d)):
            continue
        if not isinstance(layer.weight_quantizer, WeightQuantizer):
            continue
        source, embedding = embeddings.get(id(layer.weight), (None, None))
        packed = packed_layer(packed_spec(layer, source))
        packed.to(layer.weight.device)
        if embedding is not None:
            packed.tie(embedding)
        else:
            packed.store(*layer.weight_quantizer.codes(layer.weight.detach().flatten(1)))
        if isinstance(packed, PackedEmbedding):
            packed.padding_idx = layer.padding_idx  # type: ignore[assignment]
            packed.factor = layer.factor  # type: ignore[assignment]
            embeddings[id(layer.weight)] = (name, packed)
        else:
            packed.bias, packed.input_quantizer = layer.bias, layer.input_quantizer
        replace(model, name, packed.train(layer.training))
    return model


def install(model: nn.Module, specs: dict[str, PackedSpec], quant: QuantSection) -> nn.Module:
    """Swap the layers named in `specs` for empty packed ones, in place: what a loader fills."""
    if rotates_residual(model, quant):
        residual.install(model)
    names = dict(model.named_modules())
    for name, spec in specs.items():
        if name not in names:
            raise ModelError(f"layers: '{name}' of the packed folder is no layer of this model")
        packed = packed_layer(spec)
        if spec.tied_to:
            packed.tie(model.get_submodule(spec.tied_to))
        if isinstance(packed, PackedEmbedding):
            packed.padding_idx = getattr(names[name], "padding_idx", None)
            packed.factor = getattr(names[name], "factor", 1.0)
        replace(model, name, packed)
    for name, layer, decision in decisions(model, quant):  # float weights, quantized input
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and decision.input_bits < FLOAT_BITS:
            replace(model, name, _quant_layer(name, layer, decision, quant, {}))
    add_attention_quantizers(model, quant)
    adapt(model, quant)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Swap quantized layers back for plain torch ones, in place: latent weights (prepared) or
    dequantized (packed).
    """
    shared: dict[int, nn.Parameter] = {}
    for name, layer in list(layers(model)):
        if isinstance(layer, (QuantLinear, QuantConv2d, QuantEmbedding)):
            if isinstance(layer.weight_quantizer, LowRankQuantizer):
                layer.weight = nn.Parameter(layer.weight_quantizer.latent(layer.weight))
            if isinstance(layer, QuantLinear):
                _rotate_weight(layer, layer.rotation)
            weight = layer.weight
        elif isinstance(layer, PackedWeight):
            key = id(layer.source or layer)
            if key not in shared:
                weight = rotate(layer.dequantized(), layer.spec.rotation)
                shared[key] = nn.Parameter(weight.clone())
            weight = shared[key]
        else:
            continue
        replace(model, name, _plain(layer, weight))
    residual.restore(model)
    for _, attention in attentions(model):
        if hasattr(attention, "attention_quantizer"):
            reach.release(attention)
            del attention.attention_quantizer
    return model


def add_attention_quantizers(model: nn.Module, quant: QuantSection) -> None:
    """Give every attention layer its quantizers of q, k and v. Refuses one that would not call
    them where keys and values were to be quantized.
    """
    for name, attention in list(attentions(model)):
        config = getattr(attention, "config", None)
        if getattr(config, "_attn_implementation", None) != IMPLEMENTATION:
            if quant.bits().kv_bits < FLOAT_BITS:
                raise ModelError(
                    f"scheme: keys and values of '{name}' ({type(attention).__name__}) cannot be "
                    "quantized, only those of transformers' language models; leave out kv"
                )
            continue
        heads, size = head_sizes(attention)
        pairs = family_of(config.model_type).interleaved
        quantizer = AttentionQuantizer(quant, size, heads, pairs)
        attention.attention_quantizer = quantizer.to(next(attention.parameters()).device)
        reach.require_quantizers(attention)


def adapt(model: nn.Module, quant: QuantSection) -> None:
    """Give the tokens of a model with quantizers two widths, where the recipe asks for it."""
    if quant.adaptive.share is None:
        return
    attention_layers = list(attentions(model))
    if quant.adaptive.rule == "zipcache":
        for _, attention in attention_layers:
            attention.attention_quantizer.salient_share = quant.adaptive.share
        return
    config = attention_layers[0][1].config if attention_layers else None
    source = token_importance.first_source(config, len(attention_layers))
    widths = token_importance.plan(len(attention_layers), quant.adaptive, source)
    followers = token_importance.followers(config, widths)
    for number, (name, attention) in enumerate(attention_layers):
        block = model.get_submodule(name.rpartition(".")[0])
        for layer in block.modules():
            if isinstance(layer, (QuantLinear, PackedLinear)):
                layer.input_quantizer = adapted(layer.input_quantizer, widths[number])
        importance = None
        if number in followers:
            importance = TokenImportance(quant.adaptive, followers[number])
            importance.to(next(block.parameters()).device)
        attention.attention_quantizer.adapt(widths[number], importance)


def packed_layer(spec: PackedSpec) -> Any:
    """An empty packed layer."""
    return _PACKED[spec.kind](spec)


def packed_spec(layer: Any, tied_to: str | None = None) -> PackedSpec:
    """The record of a fake-quantized layer in the packed folder."""
    quantizer = layer.weight_quantizer
    shape = (int(layer.weight.shape[0]), int(layer.weight[0].numel()))
    if isinstance(layer, QuantEmbedding):
        return PackedSpec("embedding", shape, quantizer.grid.bits, quantizer.group_size)
    inputs: Any = layer.input_quantizer
    inputs = inputs.low if isinstance(inputs, AdaptiveQuantizer) else inputs
    convolution = isinstance(layer, QuantConv2d)
    return PackedSpec(
        "convolution" if convolution else "linear",
        shape,
        quantizer.grid.bits,
        quantizer.group_size,
        FLOAT_BITS if isinstance(inputs, nn.Identity) else inputs.grid.bits,
        mode_of(inputs),
        layer.bias is not None,
        0 if convolution else layer.rotation,
        tied_to,
        geometry(layer) if convolution else None,
    )


def packed_specs(model: nn.Module) -> dict[str, PackedSpec]:
    """Records of all packed layers of a converted or loaded model."""
    return {n: m.spec for n, m in layers(model) if isinstance(m, PackedWeight)}


def is_quantized(model: nn.Module) -> bool:
    """Whether a model holds any layer of ours."""
    kinds = (QuantLinear, QuantConv2d, QuantEmbedding, PackedWeight, AttentionQuantizer)
    return any(isinstance(module, kinds) for module in model.modules())


def _rotate_weight(layer: nn.Linear, rotation: int) -> None:
    if rotation and not layer.weight.is_meta:
        layer.weight.data = rotate(layer.weight.data, rotation)


def _weight_quantizer(
    name: str, layer: Any, decision: Decision, quant: QuantSection
) -> WeightQuantizer:
    shape = (int(layer.weight.shape[0]), int(layer.weight[0].numel()))
    kind = MinMaxWeightQuantizer if quant.weight.scale == "minmax" else WeightQuantizer
    quantizer = kind(shape, decision.bits, decision.granularity, decision.group_size)
    quantizer.to(layer.weight.device)
    if not layer.weight.is_meta:
        reason = quantizer.unfit(layer.weight.flatten(1))
        if reason is not None:
            largest = float(layer.weight.detach().abs().max())
            raise ModelError(
                f"model: the weights of '{name}' are {reason} for fp16 scales (largest "
                f"{largest:.1e}); move a power of two into the next layer, or set "
                f"quant.skip=[{name}]"
            )
        quantizer.initialize(layer.weight.flatten(1), quant.weight.init)
        quantizer.awaits_compensation = _compensated(name, layer, decision, quant)
    return quantizer


def compensates(model: nn.Module, quant: QuantSection) -> bool:
    """Whether calibration rounds weights of a float language model with compensation."""
    rounded = (_compensated(*entry, quant) for entry in decisions(model, quant))
    return any(attentions(model)) and any(rounded)


def _compensated(name: str, layer: Any, decision: Decision, quant: QuantSection) -> bool:
    """Whether calibration rounds a weight with compensation: not where the loss is small anyway."""
    head = name.rpartition(".")[2] in HEADS
    wanted = quant.weight.init == "gptq" and quant.weight.scale == "learned"
    is_table = isinstance(layer, nn.Embedding)  # waits with the head that is tied to it
    kind = isinstance(layer, nn.Linear) or is_table
    per_tensor = (head or is_table) and decision.granularity == "per_tensor"
    return wanted and kind and not per_tensor and decision.bits < HIGH_BITS


def _quant_layer(
    name: str,
    layer: nn.Linear | nn.Conv2d,
    decision: Decision,
    quant: QuantSection,
    embeddings: dict[int, QuantEmbedding],
) -> nn.Module:
    inputs: nn.Module = nn.Identity()
    if decision.input_bits < FLOAT_BITS:
        inputs = input_quantizer(decision.input_mode, decision.input_bits)
        inputs.to(layer.weight.device)
    embedding = embeddings.get(id(layer.weight))
    if isinstance(layer, nn.Linear):
        if embedding is not None:
            linear = QuantLinear.wrap(layer, nn.Identity(), inputs)
            linear.tie(embedding)
            return linear
        _rotate_weight(layer, decision.rotation)
    weights: nn.Module = nn.Identity()
    if decision.bits < FLOAT_BITS:
        weights = _weight_quantizer(name, layer, decision, quant)
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.wrap(layer, weights, inputs)
    return QuantLinear.wrap(layer, weights, inputs, decision.rotation)


def _share_inputs(model: nn.Module) -> None:
    """Let layers of one parent with the same quantization of their input share it."""
    for parent in model.modules():
        shared: dict[tuple[int, int, int], SharedInput] = {}
        for layer in parent.children():
            if isinstance(layer, QuantLinear) and isinstance(
                layer.input_quantizer, DynamicQuantizer
            ):
                kind = (layer.in_features, layer.input_quantizer.grid.bits, layer.rotation)
                layer.shared_input = shared.setdefault(kind, SharedInput())


def _plain(layer: Any, weight: Any) -> nn.Module:
    if isinstance(layer, (QuantEmbedding, PackedEmbedding)):
        rows, columns = weight.shape
        if layer.factor != 1:
            return ScaledEmbedding.wrap(weight, layer.padding_idx, layer.factor)
        return nn.Embedding(rows, columns, layer.padding_idx, _weight=weight)
    bias = getattr(layer, "bias", None)
    if isinstance(layer, (QuantConv2d, PackedConv2d)):
        return plain_convolution(layer, weight)
    linear: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear.train(layer.training)
