"""prepare for Hugging Face models: check the family, swap layers (nn/convert), switch attention to
ours. In image models and in a user's own modules only layers are swapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import edgeqat.hf.attention as attention
from edgeqat import checkpoint
from edgeqat.errors import ModelError
from edgeqat.families import family_of, refusal
from edgeqat.hf import kv_cache, own_layers, packed_folder
from edgeqat.hf.float_model import check_vocabulary, settle_tie
from edgeqat.nn import convert
from edgeqat.nn.decision import edges
from edgeqat.nn.finite import check_finite
from edgeqat.recipe import files as recipes
from edgeqat.recipe.data import DataSection, ModelSection
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe

_QUANT = "_edgeqat_quant"  # of a prepared model: the section it was prepared with


def check_family(config: PreTrainedConfig) -> None:
    """Refuse, by name, architectures whose attention would not be quantized."""
    reason = refusal({**config.to_dict(), "model_type": config.model_type})
    if reason is not None:
        raise ModelError(f"model: {reason}")


def _is_language_model(model: nn.Module) -> bool:
    return isinstance(model, PreTrainedModel) and model.main_input_name != "pixel_values"


def _language_models(model: nn.Module) -> list[Any]:
    """The language models in a module: itself, or those inside a user's own module."""
    if isinstance(model, PreTrainedModel):
        return [model] if _is_language_model(model) else []
    return [inner for child in model.children() for inner in _language_models(child)]


def _check_wrapped(model: nn.Module, inner: list[Any], quant: QuantSection) -> None:
    """Refuse what would lose a part of the quantization of language models inside another."""
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ModelError(
            "model: it holds peft's adapters, which packed weights cannot take; prepare what "
            "merge_and_unload() returns"
        )
    if inner and inner != [model] and any(edges(model)):
        raise ModelError(
            f"model: a {type(model).__name__} holds a {type(inner[0]).__name__} beside "
            "convolutions; prepare the two parts one by one"
        )
    if len(inner) > 1 and quant.adaptive.share is not None:
        raise ModelError(
            f"quant.adaptive: a {type(model).__name__} holds {len(inner)} language models; prepare "
            "them one by one"
        )


def prepare(model: Any, scheme: str = "w4a8kv4", quant: QuantSection | None = None) -> nn.Module:
    """Make a float model trainable at a scheme, in place: fake-quantized weights, activations, q, k
    and v. Training needs float32: 16-bit weights become that.

    `quant` gives every detail (recipe section `quant`) and wins over `scheme`. Tied embeddings stay
    tied.
    """
    quant = quant or QuantSection(scheme=scheme)
    short = any(
        parameter.dtype in (torch.bfloat16, torch.float16) for parameter in model.parameters()
    )
    if short and not convert.is_quantized(model):
        model.float()
        if hasattr(model, "config"):
            model.config.dtype = torch.float32
    check_finite(model, getattr(model, "name_or_path", "") or type(model).__name__)
    inner = _language_models(model)
    _check_wrapped(model, inner, quant)
    for part in inner:
        check_family(part.config)
        settle_tie(part)
        own_layers.to_plain(part)
        attention.register()
        part.set_attn_implementation(attention.NAME)
    prepared = convert.prepare(model, quant)
    for part in inner:
        kv_cache.make_default(part)
        setattr(part, _QUANT, quant)
    return prepared


def save(
    model: Any,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> None:
    """Pack a language model that prepare() made, in place, and write its folder: what
    edgeqat.load(), `edgeqat generate` and `edgeqat eval --data TEXT` read. Without a tokenizer the
    verbs that read or write text refuse the folder; edgeqat.Engine and `edgeqat bench` take it.
    """
    quant, target = getattr(model, _QUANT, None), Path(folder)
    if quant is None:
        raise ModelError(
            f"model: edgeqat.prepare() did not make this {type(model).__name__} from a language "
            "model; save what it returned, or edgeqat.convert() a network of your own"
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, model)
    name = model.name_or_path or type(model).__name__
    context = min(DataSection().context, model.config.max_position_embeddings)
    data = DataSection(context=context)  # what `edgeqat eval` cuts a text into
    recipe = Recipe(model=ModelSection(name=name), quant=quant, data=data)
    with checkpoint.atomic_folder(target, overwrite) as place:
        convert.convert(model)
        packed_folder.write(place, model, quant, tokenizer)
        packed_folder.seal(place, model, quant, {RESOLVED: recipes.dump(recipe)})


def restore(model: Any) -> nn.Module:
    """The float model again, in place: latent weights of a prepared, dequantized ones of a packed
    model.
    """
    convert.restore(model)
    for part in _language_models(model):
        kv_cache.unmake_default(part)
        own_layers.to_own(part, family_of(part.config.model_type))
        part.set_attn_implementation("sdpa")
        if getattr(part, "hf_quantizer", None) is not None:
            part.hf_quantizer.remove_quantization_config(part)
        part.tie_weights()
    return model
