"""Parity on a real model: EDGEQAT_MODELS is the folder of llama-8m-novels; skipped without it."""

import copy
import os
from pathlib import Path

import pytest
import torch

import edgeqat
from edgeqat.hf.float_model import load_model, load_tokenizer
from edgeqat.nn import convert
from edgeqat.nn.decision import layers
from edgeqat.nn.packed import PackedLinear
from edgeqat.quant.functional import quantize_dynamic

FOLDER = Path(os.environ.get("EDGEQAT_MODELS", "missing")) / "llama-8m-novels"
TEXT = "It was a bright cold day, and the old gentleman had not yet come down to breakfast. " * 12

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="EDGEQAT_MODELS has no llama-8m-novels")


@torch.no_grad()
def block_codes(model, integer):
    """Runs every block on its own float-path input; returns the activation codes met in it.

    Blocks are compared one at a time: one code that flips at a tie moves all that follow it.
    """
    found = []

    def collect(module, inputs):
        quantizer = module.input_quantizer
        found.append(quantize_dynamic(inputs[0], quantizer.grid, quantizer.clip)[0])

    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for module in linears:
        module.integer = integer
    hooks = [module.register_forward_pre_hook(collect) for module in linears]
    return found, hooks


@torch.no_grad()
def logits_of(model, ids, integer=False):
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.integer = integer
    return model(ids, use_cache=False).logits


@torch.no_grad()
def equal_codes_by_block(model, ids):
    """Share of activation codes that are equal on both paths, every block given the same input."""
    calls = []

    def remember(module, arguments, options):
        calls.append((module, arguments, options))

    hooks = [
        block.register_forward_pre_hook(remember, with_kwargs=True) for block in model.model.layers
    ]
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    codes = {}
    for integer in (False, True):
        codes[integer], hooks = block_codes(model, integer)
        for block, arguments, options in calls:
            block(*arguments, **options)
        for hook in hooks:
            hook.remove()
    pairs = list(zip(codes[False], codes[True], strict=True))
    return sum((a == b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)


@pytest.mark.parametrize("scheme", ["w8a8kv8", "w4a8kv4", "w4a4kv4", "w3a4kv3", "w2a8kv2"])
def test_the_packed_model_is_the_fake_quantized_one_and_the_integer_path_agrees(scheme):
    ids = torch.tensor([load_tokenizer(str(FOLDER))(TEXT)["input_ids"][:200]])
    prepared = edgeqat.prepare(load_model(str(FOLDER)).eval(), scheme)
    with torch.no_grad():
        expected = prepared(ids, use_cache=False).logits
    packed = convert.convert(copy.deepcopy(prepared))
    for name, layer in layers(packed):
        original = prepared.get_submodule(name)
        codes, _ = original.weight_quantizer.codes(original.weight)
        if layer.source is None:
            assert torch.equal(layer.codes(), codes), name
    assert torch.equal(logits_of(packed, ids), expected)
    integer = logits_of(packed, ids, integer=True)
    share = equal_codes_by_block(packed, ids)
    cosine = torch.cosine_similarity(expected.flatten(), integer.flatten(), dim=0).item()
    print(f"{scheme}: activation codes equal {share:.5f}, logits cosine {cosine:.7f}")
    assert share >= 0.999
    assert cosine >= (0.9999 if scheme in ("w8a8kv8", "w4a8kv4") else 0.997)
