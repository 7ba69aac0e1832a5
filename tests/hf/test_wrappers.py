"""Language models inside another module, with adapters, and written by torch.save."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.serialization import load as read

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.hf.kv_cache import KVCache


class Wrapper(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, ids):
        return self.parts[0](ids, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["w16a16kv2", "w4a8kv4"])
def test_a_language_model_inside_a_module_is_quantized_as_it_is_alone(scheme):
    alone = edgeqat.prepare(tiny.llama(), scheme)
    inside = edgeqat.prepare(Wrapper(tiny.llama()), scheme)
    expected = alone(tiny.ids(), use_cache=False).logits
    assert torch.equal(inside(tiny.ids()), expected)
    assert not torch.equal(tiny.llama()(tiny.ids()).logits, expected)
    edgeqat.convert(inside)
    assert torch.equal(inside(tiny.ids()), expected)


@torch.no_grad()
def test_the_model_inside_has_two_widths_by_its_own_windows():
    quant = edgeqat.QuantSection.model_validate({"scheme": "w4a4kv4", "adaptive": {"share": 0.5}})
    alone, inside = tiny.llama(), Wrapper(tiny.llama())
    for model in (alone, inside):
        edgeqat.calibrate(edgeqat.prepare(model, quant=quant), [tiny.ids(seed=3)])
    assert torch.equal(inside(tiny.ids()), alone(tiny.ids(), use_cache=False).logits)
    with pytest.raises(ModelError, match="holds 2 language models"):
        edgeqat.prepare(Wrapper(tiny.llama(), tiny.llama()), quant=quant)


def test_a_restored_wrapper_is_the_float_one():
    model = edgeqat.restore(edgeqat.prepare(Wrapper(tiny.llama()), "w16a16kv2"))
    expected = tiny.llama()(tiny.ids(), use_cache=False).logits
    assert torch.allclose(model(tiny.ids()), expected, atol=1e-4)


def test_a_language_model_beside_convolutions_is_refused():
    with pytest.raises(ModelError, match="holds a LlamaForCausalLM beside convolutions"):
        edgeqat.prepare(Wrapper(tiny.llama(), nn.Conv2d(3, 4, 3)), "w4a8kv4")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_adapters_of_peft_are_refused():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny.llama(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"peft's adapters.*merge_and_unload"):
        edgeqat.prepare(adapted, "w16a16kv2")
    assert edgeqat.prepare(adapted.merge_and_unload(), "w16a16kv2")


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_a_prepared_model_survives_torch_save(tmp_path, ran):
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4").eval()
    if ran:
        model(tiny.ids())
    torch.save(model, tmp_path / "model.pt")
    loaded = read(tmp_path / "model.pt", weights_only=False)  # our own file
    assert torch.equal(loaded(tiny.ids()).logits, model(tiny.ids()).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for each in (loaded, copy.deepcopy(model)):
        made = each.generate(tiny.ids(1, 5), return_dict_in_generate=True, **options)
        assert isinstance(made.past_key_values, KVCache)
        own = {id(layer.quantizer) for layer in made.past_key_values.layers}
        assert own <= {id(module) for module in each.modules()}
