"""The shipped recipes of image models are what their names say."""

import re

import pytest
import torch

from edgeqat.hf.image_model import named
from edgeqat.nn.blocks import block_names
from edgeqat.recipe import files as recipes

NAME = re.compile(r"(?P<model>.+)-(?P<scheme>w\d+a\d+)-(?P<share>\d+)pct-(?P<selector>.+)")
VISION = sorted(n for n, path in recipes.shipped().items() if path.parent.name == "vision")


@pytest.mark.parametrize("name", VISION)
def test_a_recipe_is_what_its_name_says(name):
    recipe, match = recipes.load(name), NAME.fullmatch(name)
    with torch.device("meta"):
        model = named(recipe.model.name).build()
    if match is None:
        assert name in (recipe.model.name, f"{recipe.model.name}-float")
        assert recipe.quant.bits().is_float == name.endswith("-float")
        return
    assert recipe.model.name == match["model"] and not recipe.quant.bits().is_float
    assert recipe.quant.scheme.startswith(match["scheme"].replace("a32", "a16"))
    selector = match["selector"].removesuffix("-clc")
    if selector == "all":
        assert not recipe.coreset.is_on
    else:
        assert (recipe.coreset.share, recipe.coreset.selector) == (
            int(match["share"]) / 100, selector
        )  # fmt: skip
    corrected = selector in ("quarc", "all") or match["selector"].endswith("-clc")
    assert (recipe.correct.weight > 0) == corrected
    assert len(block_names(model, recipe.correct.blocks)) >= 8
    assert recipe.train.epochs
    assert recipe.train.optimizer == ("adamw" if "vit" in name else "sgd")


def test_selectors_are_compared_at_the_same_settings():
    found = [recipes.load(n) for n in VISION if n.startswith("mobilenetv2-cifar100-w2a32-1pct")]
    assert len(found) >= 7
    assert len({(r.train.model_dump_json(), r.distill.model_dump_json()) for r in found}) == 1
    assert len({r.coreset.every for r in found}) == 1


def test_the_asked_for_recipes_are_there():
    cifar = "mobilenetv2-cifar100"
    wanted = {f"{cifar}-w2a32-1pct-{s}" for s in ("quarc", "acs", "random", "res", "random-clc")}
    wanted |= {f"{cifar}-w{w}a32-{s}pct-quarc" for w in (2, 3, 4) for s in (1, 3, 5, 10)}
    wanted |= {f"{cifar}-w{w}a32-100pct-all" for w in (2, 3, 4)} | {f"{cifar}-float"}
    wanted |= {f"resnet18-{d}-{s}" for d, s in (
        ("cifar100", "w4a4-10pct-quarc"), ("cifar100", "w2a2-10pct-quarc"),
        ("imagenet", "w4a4-1pct-quarc"), ("imagenet", "w2a2-1pct-quarc"))}  # fmt: skip
    wanted |= {"vit-tiny-cifar100-w4a8-10pct-quarc", "vit-tiny-cifar100-float"}
    wanted |= {"efficientnet-b0-cifar100-w4a8-10pct-quarc", "efficientnet-b0-cifar100-float"}
    assert wanted <= set(VISION)
