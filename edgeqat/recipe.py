"""Recipes: one YAML file is one run. Validated once, here; the field descriptions are the
documentation.

Precedence: the defaults below < the recipe file < the command line (--set a.b=c and the short
flags). An unknown key is an error that suggests the nearest name. The resolved recipe is saved with
the result.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from edgeqat.errors import RecipeError, nearest
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS, Scheme
from edgeqat.sections import (
    ActivationSection,
    AdaptiveSection,
    ArchitectureSection,
    CacheSection,
    CoresetSection,
    CorrectSection,
    ImageSection,
    LowRankSection,
    Section,
    WeightSection,
    adaptive_value,
    coreset_value,
)

VERSION = 1
LLAMA_CPP_BITS = (4, 8, FLOAT_BITS)  # of keys and values
LARGEST_BF16_BETA = 0.99
RESOLVED = "recipe.resolved.yaml"  # the recipe of a packed folder, every default written out


class ModelSection(Section):
    name: str = Field("demo", description="alias, local folder or hub id of the float model")
    weights: str | None = Field(None, description="safetensors file that replaces the weights")


class QuantSection(Section):
    scheme: str = Field("w4a8kv4", description="bits of weights, activations and KV cache")
    weight: WeightSection = WeightSection()
    activation: ActivationSection = ActivationSection()
    kv: CacheSection = CacheSection()
    adaptive: AdaptiveSection = AdaptiveSection()
    embedding_bits: Literal[4, 6, 8, 16] = Field(
        8, description="bits per row of embeddings and lm_head (16: float)"
    )
    skip: list[str] = Field([], description="glob patterns of layers left in float")
    edges: Literal["float", "8bit", "same"] = Field(
        "8bit", description="first convolution and classifier of an image model"
    )

    @field_validator("scheme")
    @classmethod
    def _normalise(cls, value: str) -> str:
        return str(Scheme.parse(value))

    @field_validator("adaptive", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return adaptive_value(value)

    @model_validator(mode="after")
    def _has_low_widths(self) -> QuantSection:
        scheme = self.bits()
        share, rule = self.adaptive.share, self.adaptive.rule
        if share is not None and rule == "zipcache" and scheme.kv_bits >= HIGH_BITS:
            raise ValueError(
                f"adaptive.rule: zipcache chooses keys and values, which are not below 8 bit at "
                f"{self.scheme}; write for example --w4a8kv4"
            )
        if self.kv.kivi is not None and (share is not None or scheme.kv_bits == FLOAT_BITS):
            raise ValueError(
                f"kv.kivi: {self.kv.kivi} needs a quantized KV cache and no adaptive widths; "
                "write for example --w4a8kv4"
            )
        if self.activation.mode == "q8_0" and scheme.activation_bits < HIGH_BITS:
            raise ValueError(
                f"activation.mode: llama.cpp multiplies with 8-bit activations and the scheme is "
                f"{self.scheme}; write for example --w4a8kv4"
            )
        if self.kv.llama_cpp:
            self._fits_llama_cpp(scheme)
        if share is not None and not scheme.has_low_tokens:
            raise ValueError(
                f"adaptive.share: {share} needs activations or a KV cache below 8 "
                f"bit and the scheme is {self.scheme}; write for example --w4a4kv4"
            )
        return self

    def _fits_llama_cpp(self, scheme: Scheme) -> None:
        if scheme.kv_bits not in LLAMA_CPP_BITS:
            raise ValueError(
                f"kv.llama_cpp: llama.cpp caches 4, 8 or 16 bits and the scheme is {self.scheme}; "
                "write for example --w4a8kv4"
            )
        extra = {
            "kv.sink_tokens=0": self.kv.sink_tokens, "kv.key_offset=false": self.kv.key_offset,
            "no kv.kivi": self.kv.kivi, "no adaptive.share": self.adaptive.share is not None,
        }  # fmt: skip
        if any(extra.values()) and scheme.kv_bits < FLOAT_BITS:
            raise ValueError(
                "kv.llama_cpp: its cache keeps no token at more bits and no offset; it needs "
                + ", ".join(way for way, given in extra.items() if given)
            )

    def bits(self) -> Scheme:
        """The parsed scheme."""
        return Scheme.parse(self.scheme)

    def rotates(self, name: str) -> bool:
        """Whether the input of the layer `name` is rotated."""
        return any(fnmatch(name, pattern) for pattern in self.activation.rotate)

    def plain(self) -> QuantSection:
        """The same scheme without rotations and key offsets, MSE-optimal: the table's PTQ row."""
        return self.model_copy(
            update={
                "kv": self.kv.model_copy(update={"rotate_keys": False, "key_offset": False}),
                "activation": self.activation.model_copy(update={"rotate": []}),
                "weight": self.weight.model_copy(update={"scale": "learned", "init": "mse"}),
            }
        )

    def head_bits(self) -> int:
        """Bits of embeddings and lm_head: float when the scheme leaves the weights in float."""
        return FLOAT_BITS if self.bits().weight_bits == FLOAT_BITS else self.embedding_bits


class DataSection(Section):
    root: str | None = Field(None, description="folder of the data; also --data, EDGEQAT_DATA")
    train: str | None = Field(None, description="training text: file, folder, HF dataset, `demo`")
    valid: str | None = Field(None, description="held-out text; default: the last 5% of train")
    context: int = Field(256, ge=2, description="tokens per block")
    bos: bool = Field(False, description="start every block with the BOS token")
    train_blocks: int = Field(0, ge=0, description="training blocks used, evenly spaced (0: all)")
    valid_blocks: int = Field(
        256, ge=0, description="held-out blocks evaluated, evenly spaced (0: all)"
    )
    streaming: bool = Field(False, description="read while training: text beyond memory")
    text_field: str = Field(
        "text", description="field or column that holds the text of rows (all files but plain text)"
    )
    images: ImageSection = ImageSection()


class TrainSection(Section):
    method: Literal["full", "lowrank"] = Field(
        "full", description="train the weights, or low-rank adapters inside the rounding (LR-QAT)"
    )
    lowrank: LowRankSection = LowRankSection()
    steps: int = Field(200, ge=0, description="optimizer steps")
    epochs: float | None = Field(
        None, gt=0, description="passes over the data (or coreset) instead of steps"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of adamw's second moment")
    batch_size: int = Field(8, ge=1, description="blocks or images per step and process")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimizer step")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of the weights; absent: from the PTQ gap"
    )
    scale_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of the scales; absent: a fifth of the weights'"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after warm-up")
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices (never of scales)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    bf16: bool = Field(False, description="bf16 autocast; quantizers stay float32")
    bf16_states: bool = Field(False, description="AdamW's moments in bf16: less memory")
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward")
    compare_float: bool = Field(True, description="also train the float model for the same steps")
    log_steps: int = Field(10, ge=1, description="steps between two records of metrics.jsonl")
    save_steps: int = Field(50, ge=0, description="steps between two checkpoints (0: none)")

    @model_validator(mode="after")
    def _moments_can_follow(self) -> TrainSection:
        if self.bf16_states and self.optimizer == "sgd":
            raise ValueError("train.bf16_states: it is AdamW's; leave it out or use adamw")
        if self.bf16_states and self.beta2 >= LARGEST_BF16_BETA:
            reason = f"bf16_states cannot follow so slow; stay below {LARGEST_BF16_BETA}"
            raise ValueError(f"train.beta2: {self.beta2:g}: {reason}")
        return self


class DistillSection(Section):
    weight: float = Field(1.0, ge=0, le=1, description="gamma: share of KL against cross-entropy")
    temperature: float = Field(1.0, gt=0, description="tau of the softened distributions")
    teacher: str | None = Field(
        None, description="another model as teacher; default: the float self"
    )


class EntropySection(Section):
    weight: float = Field(0.0, ge=0, description="weight of the term (0: not computed)")
    form: Literal["gap", "paper"] = Field(
        "gap", description="gap: what the teacher has more; paper: -log of the summed spread"
    )
    layers: list[int] | None = Field(None, description="layer numbers; absent: all")


class DistributionSection(Section):
    weight: float = Field(0.0, ge=0, description="weight of the term (0: not computed)")
    form: Literal["cosine", "kl"] = Field(
        "cosine", description="distance of attention rows: 1 - cosine, or KL from the teacher's"
    )
    rows: int = Field(64, ge=1, description="query rows compared per sequence and layer")
    layers: list[int] | None = Field(None, description="layer numbers; absent: all")


class GuideSection(Section):
    """EdgeQAT's guidance on query and key (2402.10787)."""

    entropy: EntropySection = EntropySection()
    distribution: DistributionSection = DistributionSection()


class Recipe(Section):
    """Everything a run needs."""

    version: int = Field(VERSION, description="version of the recipe's format")
    description: str = Field("", description="one line for `edgeqat recipes`")
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of data order, initialisation and sampling"
    )
    model: ModelSection = ModelSection()
    quant: QuantSection = QuantSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    distill: DistillSection = DistillSection()
    guide: GuideSection = GuideSection()
    coreset: CoresetSection = CoresetSection()
    correct: CorrectSection = CorrectSection()
    architecture: ArchitectureSection | None = Field(
        None, description="shape of the float model (only for `edgeqat train`)"
    )

    @field_validator("coreset", mode="before")
    @classmethod
    def _coreset(cls, value: Any) -> Any:
        return coreset_value(value)

    @model_validator(mode="after")
    def _adapters_have_a_place(self) -> Recipe:
        if self.train.method == "lowrank":
            if self.quant.weight.scale == "minmax":
                raise ValueError("train.method: 'lowrank' needs quant.weight.scale 'learned'")
            if self.quant.bits().weight_bits == FLOAT_BITS:
                raise ValueError("train.method: 'lowrank' needs a scheme with quantized weights")
        return self

    @property
    def makes_float(self) -> bool:
        """Whether it is for `edgeqat train`."""
        return self.architecture is not None or self.quant.bits().is_float


def load(source: str | Path | None, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe from a shipped name or a file, with overrides {"train.steps": 20} applied on top."""
    values = _read(find(source)) if source else {}
    found = values.get("version", VERSION)
    if not isinstance(found, int) or found > VERSION:
        raise RecipeError(
            f"version: {found} of recipe '{source}' is newer than {VERSION}; update edgeqat"
        )
    overrides = overrides or {}
    given = {path for path, value in overrides.items() if value is not None}
    if {"train.steps", "train.epochs"} <= given:
        raise RecipeError(
            f"train.epochs: {overrides['train.epochs']} and train.steps: "
            f"{overrides['train.steps']} both say how long to train; give one of them"
        )
    if "train.steps" in overrides and isinstance(values.get("train"), dict):
        values["train"].pop("epochs", None)
    for path, value in overrides.items():
        _put(_expanded(values), path, value)
    recipe = validate(values)
    if "coreset.share" not in overrides and not recipe.coreset.chooses:
        _refuse_idle("coreset.", given, "no coreset is chosen; add for example --coreset 0.01")
    if recipe.train.method != "lowrank":
        _refuse_idle("train.lowrank.", given, "add --set train.method=lowrank")
    return recipe


def _refuse_idle(section: str, given: set[str], reason: str) -> None:
    for path in sorted(given):
        if path.startswith(section):
            raise RecipeError(f"{path}: {reason}")


def validate(values: dict[str, Any]) -> Recipe:
    """A checked recipe from plain values; raises RecipeError with one line for the first fault."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            *parents, key = [str(part) for part in first["loc"]]
            known = _fields(parents)
            raise RecipeError(f"{path}: unknown key of the recipe; {nearest(key, known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f" '{first['input']}'"
        where = "" if message.startswith(path.rpartition(".")[2]) else f"{path}:{shown} "
        raise RecipeError(f"{where}{message[:1].lower()}{message[1:]}") from None


def parse_set(entry: str) -> tuple[str, Any]:
    """`train.steps=20` -> ("train.steps", 20); the value is read as YAML."""
    path, equals, text = entry.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set '{entry}': write it as a.b=value, for example train.steps=20")
    try:
        value = yaml.safe_load(text)
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            value = float(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set '{entry}': the value is not YAML; quote it") from None
    except ValueError:
        pass
    return path, value


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False)


def folder() -> Path:
    """Where the shipped recipes are: inside the installed package or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Names of the shipped recipes and their files."""
    return {path.stem: path for path in sorted(folder().rglob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name."""
    path = Path(os.path.expanduser(str(source)))
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise RecipeError(f"recipe: '{source}' is not a file; `edgeqat recipes` lists the shipped")
    known = shipped()
    if str(source) not in known:
        raise RecipeError(f"recipe: '{source}' is unknown; {nearest(str(source), list(known))}")
    return known[str(source)]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"recipe: '{path}' is not readable YAML ({reason}); mend it") from None
    if not isinstance(values, dict):
        raise RecipeError(f"recipe: '{path}' holds no mapping; see `edgeqat recipes`")
    return values


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with sections in the place of their shorthands."""
    if "coreset" in values:
        values["coreset"] = coreset_value(values["coreset"])
    quant = values.get("quant")
    if isinstance(quant, dict) and "adaptive" in quant:
        quant["adaptive"] = adaptive_value(quant["adaptive"])
    return values


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: '{parent}' holds a value, not a section")
    values[key] = value


def _fields(parents: list[str]) -> list[str]:
    section: Any = Recipe
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        section = next(k for k in kinds if isinstance(k, type) and issubclass(k, Section))
    return list(section.model_fields)
