"""The section `quant` of a recipe: how weights, activations, keys and values are rounded."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from edgeqat.recipe.section import Section
from edgeqat.scheme import FLOAT_BITS, GROUP_MULTIPLE, HIGH_BITS, Scheme


class WeightSection(Section):
    granularity: Literal["per_group", "per_channel", "per_tensor"] = Field(
        "per_group", description="how many weights share a scale"
    )
    group_size: int = Field(128, description="weights per scale along in_features (multiple of 32)")
    scale: Literal["learned", "minmax"] = Field(
        "learned", description="learned: LSQ; minmax: from the largest weight (RTN, LLM-QAT)"
    )
    init: Literal["gptq", "mse", "lsq"] = Field(
        "gptq",
        description="how weights start; gptq (language models below 8 bit): compensated errors; "
        "mse: least error; lsq: LSQ's",
    )

    @field_validator("group_size")
    @classmethod
    def _multiple(cls, value: int) -> int:
        if value < GROUP_MULTIPLE or value % GROUP_MULTIPLE:
            raise ValueError(f"must be a positive multiple of {GROUP_MULTIPLE}")
        return value


class ActivationSection(Section):
    mode: Literal["dynamic", "minmax", "static", "pact", "q8_0"] = Field(
        "dynamic",
        description="dynamic: per token; static: per tensor; q8_0: llama.cpp's; others: baselines",
    )
    calibration_batches: int = Field(
        8,
        ge=1,
        description="training batches to calibrate on: weights (gptq), static scales, key offsets",
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
    balance: bool = Field(
        True,
        description="fold scales of queries and keys and a basis of values into the weights",
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
        extras += ["heads balanced"] if self.balance else []
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
        description="which tokens; zipcache: baseline for K and V; others: controls",
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


def adaptive_value(value: Any) -> Any:
    """A share, or `off`, as the section it stands for."""
    if isinstance(value, bool):
        return value or {}
    return {"share": value} if isinstance(value, int | float | str) else value


LLAMA_CPP_BITS = (4, 8, FLOAT_BITS)  # of keys and values


class QuantSection(Section):
    scheme: str = Field("w4a8kv4", description="bits of weights, activations and KV cache")
    weight: WeightSection = WeightSection()
    activation: ActivationSection = ActivationSection()
    kv: CacheSection = CacheSection()
    adaptive: AdaptiveSection = AdaptiveSection()
    rotate_residual: bool = Field(
        True,
        description="rotate the residual stream of language models with RMS norms; it is folded "
        "into the weights",
    )
    embedding_bits: Literal[4, 6, 8, 16] = Field(
        8, description="bits per row of embeddings and lm_head (16: float)"
    )
    average_bits: float | None = Field(
        None,
        gt=0,
        le=8,
        description="average bits of all weights, with scales, embedding and head; layers that "
        "lose more get more of 2, 3, 4, 6, 8",
    )
    layer_bits: dict[str, Literal[1, 2, 3, 4, 6, 8]] = Field(
        {}, description="bits of single layers by name or glob pattern, instead of the scheme's"
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
        if self.average_bits is not None and scheme.weight_bits == FLOAT_BITS:
            raise ValueError(
                f"average_bits: {self.average_bits:g} needs quantized weights and the scheme is "
                f"{self.scheme}; write for example --w4a8kv4"
            )
        if self.average_bits is not None and self.layer_bits:
            raise ValueError(
                "average_bits: it sets the bits of every layer, as layer_bits does; leave one out"
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

    @classmethod
    def stored(cls, values: dict[str, Any]) -> QuantSection:
        """The section of a packed folder; what older versions did not know is off, and what is
        folded into the weights needs no word.
        """
        kv = {**values.get("kv", {}), "balance": False}
        return cls.model_validate({"rotate_residual": False, **values, "kv": kv})

    def rotates(self, name: str) -> bool:
        """Whether the input of the layer `name` is rotated."""
        return any(fnmatch(name, pattern) for pattern in self.activation.rotate)

    def ptq_only(self) -> QuantSection:
        """The same scheme without rotations and key offsets, MSE-optimal: the table's PTQ row."""
        return self.model_copy(
            update={
                "rotate_residual": False,
                "kv": self.kv.model_copy(
                    update={"rotate_keys": False, "key_offset": False, "balance": False}
                ),
                "activation": self.activation.model_copy(update={"rotate": []}),
                "weight": self.weight.model_copy(update={"scale": "learned", "init": "mse"}),
            }
        )

    @property
    def rotates_anything(self) -> bool:
        """Whether the start differs from PTQ by a rotation."""
        heads = self.kv.rotate_keys or self.balances
        return bool(self.activation.rotate) or heads or self.rotate_residual

    @property
    def balances(self) -> bool:
        """Whether heads are balanced where a model's can be."""
        return self.kv.balance and self.bits().kv_bits < FLOAT_BITS and self.kv.kivi is None

    def bits_of(self, name: str, otherwise: int) -> int:
        """Bits of the weight of the layer `name`, where others have `otherwise`."""
        if otherwise == FLOAT_BITS or not self.layer_bits:
            return otherwise
        if name in self.layer_bits:
            return self.layer_bits[name]
        matching = (bits for glob, bits in self.layer_bits.items() if fnmatch(name, glob))
        return next(matching, otherwise)

    def head_bits(self) -> int:
        """Bits of embeddings and lm_head: float when the scheme leaves the weights in float."""
        return FLOAT_BITS if self.bits().weight_bits == FLOAT_BITS else self.embedding_bits
