"""Sections of a recipe that say which samples are trained on and what besides logits is matched
(images, coresets, layer correction), how weights, activations, keys and values are rounded, and the
shape of a float model. The rest is in recipe.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edgeqat.scheme import FLOAT_BITS, GROUP_MULTIPLE, HIGH_BITS, Scheme


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, and `on`, `off` or `true` for a number."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("is on or off, where a number or a name belongs")
        return value


class ImageSection(Section):
    """How labelled images are read."""

    size: int | None = Field(
        None, ge=8, description="side in pixels; absent: 224 for ImageNet models, else 32"
    )
    label: str | None = Field(
        None, description="column of the labels; absent: fine_label, label or labels"
    )
    augment: bool = Field(True, description="shift and flip training images at random")
    train_images: int = Field(0, ge=0, description="training images, evenly spaced (0: all)")
    valid_images: int = Field(0, ge=0, description="held-out images, evenly spaced (0: all)")


class CoresetSection(Section):
    """Which samples are trained on (QuaRC, 2507.17768); a number stands for `share`, a file name
    for `file`.
    """

    share: float | None = Field(
        None, gt=0, le=1, description="share of the training samples to keep; absent: all"
    )
    file: str | None = Field(
        None, description="JSON of `edgeqat coreset`: these samples, selected once"
    )
    selector: Literal[
        "quarc", "acs", "res", "evs", "ds", "el2n", "moderate", "forgetting", "random"
    ] = Field("quarc", description="score of a sample; the highest are kept")
    trial_steps: int = Field(
        400, ge=1, description="steps of the throw-away training that `forgetting` watches"
    )
    every: int = Field(
        50, ge=0, description="passes over the coreset between two selections (0: one selection)"
    )
    every_steps: int | None = Field(
        None, ge=1, description="steps between two selections, at the next pass; instead of `every`"
    )
    balanced: bool | None = Field(
        None, description="as many of each class; absent: for labelled images below 5%"
    )
    random_share: float = Field(0.0, ge=0, le=1, description="part of the coreset drawn at random")
    norm_images: int = Field(
        1024, ge=0, description="images of all data on which batch norms are estimated anew before "
        "the student is scored and after training (0: none)",
    )  # fmt: skip
    kept_classes: int | None = Field(
        None, ge=1, description="most probable classes cached of outputs with more than 1,000; "
        "absent: all where they take at most 1 GiB, else 256",
    )  # fmt: skip

    @property
    def chooses(self) -> bool:
        """Whether it says which samples are trained on."""
        return self.file is not None or self.share is not None

    @property
    def is_on(self) -> bool:
        """Whether not all samples are trained on."""
        return self.file is not None or (self.share is not None and self.share < 1)


class WeightSection(Section):
    granularity: Literal["per_group", "per_channel", "per_tensor"] = Field(
        "per_group", description="how many weights share a scale"
    )
    group_size: int = Field(128, description="weights per scale along in_features (multiple of 32)")
    scale: Literal["learned", "minmax"] = Field(
        "learned", description="learned: LSQ; minmax: from the largest weight (RTN, LLM-QAT)"
    )
    init: Literal["mse", "lsq"] = Field("mse", description="initial scale: least squares or LSQ's")

    @field_validator("group_size")
    @classmethod
    def _multiple(cls, value: int) -> int:
        if value < GROUP_MULTIPLE or value % GROUP_MULTIPLE:
            raise ValueError(f"must be a positive multiple of {GROUP_MULTIPLE}")
        return value


class ActivationSection(Section):
    mode: Literal["dynamic", "minmax", "static", "pact", "q8_0"] = Field(
        "dynamic",
        description="dynamic: clipped absmax per token; static: learned per tensor (LSQ+); "
        "q8_0: llama.cpp's, absmax per block of 32; minmax: absmax per token and pact: learned "
        "clipping, as baselines",
    )
    calibration_batches: int = Field(
        8, ge=1, description="batches that initialise static scales and key offsets"
    )
    rotate: list[str] = Field(
        ["*"], description="glob patterns of layers whose input (and weight) is Hadamard-rotated"
    )


class CacheSection(Section):
    sink_tokens: int = Field(4, ge=0, description="first tokens whose K and V are kept at 8 bit")
    rotate_keys: bool = Field(True, description="Hadamard-rotate q and k after RoPE")
    key_offset: bool = Field(
        True, description="subtract the mean of each key channel; attention does not see it"
    )
    llama_cpp: bool = Field(
        False, description="as llama.cpp's q4_0 and q8_0 caches store them; --target gguf sets it"
    )
    minmax: bool = Field(False, description="absmax scales at few bits too, as a baseline")
    kivi: int | None = Field(
        None, ge=32, multiple_of=32, description="window of the KIVI baseline; absent: our layout"
    )

    def words(self, scheme: Scheme) -> str:
        """How queries, keys and values are kept, for tables."""
        query = "float" if scheme.activation_bits == FLOAT_BITS else f"{scheme.activation_bits} bit"
        if scheme.kv_bits == FLOAT_BITS:
            return f"attention: query {query}, keys and values float"
        if self.kivi is not None:
            per = f"per channel and token, the last {self.kivi} tokens in float"
            return f"attention: query {query}, keys and values {scheme.kv_bits} bit {per}"
        extras = [f"the first {self.sink_tokens} tokens at 8 bit"]
        extras += ["q and k rotated"] if self.rotate_keys else []
        extras += ["keys without their mean"] if self.key_offset else []
        return (
            f"attention: query {query}, keys and values {scheme.kv_bits} bit per token and head "
            f"({', '.join(extras)})"
        )


class AdaptiveSection(Section):
    """Important tokens at 8 bit, the rest at the scheme's widths; a number stands for `share`."""

    share: float | None = Field(
        None, ge=0, le=1, description="share of tokens at 8 bit; absent: all tokens alike"
    )
    rule: Literal["importance", "random", "reversed", "layers", "zipcache"] = Field(
        "importance",
        description="which tokens; the others are controls, zipcache a baseline for K and V",
    )

    @model_validator(mode="after")
    def _has_share(self) -> AdaptiveSection:
        if self.share is None and self.rule != "importance":
            raise ValueError(
                f"rule: {self.rule} chooses tokens, but adaptive.share does not say how many; add "
                "for example --adaptive 0.5"
            )
        return self

    def words(self, scheme: Scheme) -> str:
        """Which tokens take which widths; there must be a share."""
        parts = {"activations": scheme.activation_bits, "keys and values": scheme.kv_bits}
        low = [
            name
            for name, bits in parts.items()
            if bits < HIGH_BITS and not (self.rule == "zipcache" and name == "activations")
        ]
        moved = [f"{name} at {HIGH_BITS} or {parts[name]} bit" for name in low]
        kept = [f"{name} stay as they are" for name in parts if name not in low]
        return f"adaptive: {', '.join(moved + kept)}; rule {self.rule}, share {self.share}"


class CorrectSection(Section):
    """Layer correction: block outputs matched to the float model's (2507.17768, section 3.3)."""

    weight: float = Field(0.0, ge=0, description="beta, weight of the term (0: not computed)")
    form: Literal["mse", "kl"] = Field(
        "mse", description="mse: normalised squared error; kl: the paper's, over channels"
    )
    blocks: str = Field("auto", description="which blocks: auto, or a glob pattern of modules")


class ArchitectureSection(Section):
    """Shape of a float Llama that `edgeqat train` makes."""

    vocab_size: int = Field(2048, ge=260, description="size of the byte-level BPE vocabulary")
    hidden_size: int = Field(128, ge=8, description="width of the residual stream")
    layers: int = Field(6, ge=1, description="decoder layers")
    heads: int = Field(2, ge=1, description="query heads")
    kv_heads: int = Field(1, ge=1, description="key/value heads")
    head_dim: int = Field(64, ge=8, description="width of a head")
    ffn: int = Field(384, ge=8, description="width of the MLP")
    positions: int = Field(512, ge=16, description="longest sequence")
    tied: bool = Field(True, description="share embedding and lm_head")
    dropout: float = Field(0.0, ge=0, lt=1, description="attention dropout")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the written weights"
    )

    @model_validator(mode="after")
    def _fits(self) -> ArchitectureSection:
        if self.hidden_size % self.heads or self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}, those "
                f"of kv_heads {self.kv_heads}, and head_dim {self.head_dim} even"
            )
        return self


class LowRankSection(Section):
    rank: int = Field(32, ge=1, description="rank r of the adapters")
    alpha: int = Field(32, ge=1, description="the adapter counts alpha / rank")
    base: Literal["float32", "bf16", "int8"] = Field(
        "bf16", description="how the frozen weights are kept"
    )


def adaptive_value(value: Any) -> Any:
    """A share, or `off`, as the section it stands for."""
    if isinstance(value, bool):
        return value or {}
    return {"share": value} if isinstance(value, int | float | str) else value


def coreset_value(value: Any) -> Any:
    """A share, a file name or `off` as the section it stands for."""
    if isinstance(value, bool):
        return value or {}
    if isinstance(value, int | float):
        return {"share": value}
    return {"file": value} if isinstance(value, str) else value
