"""Sections of a recipe that say what is trained on: `model`, `data`, `coreset`, and the shape of a
float model, `architecture`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from edgeqat.recipe.section import Section


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
        1024, ge=0, description="images from all data to re-estimate batch norms before the "
        "student is scored and after training (0: none)",
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


def coreset_value(value: Any) -> Any:
    """A share, a file name or `off` as the section it stands for."""
    if isinstance(value, bool):
        return value or {}
    if isinstance(value, int | float):
        return {"share": value}
    return {"file": value} if isinstance(value, str) else value


class ModelSection(Section):
    name: str = Field("demo", description="alias, local folder, GGUF file or hub id")
    weights: str | None = Field(None, description="safetensors file that replaces the weights")


class DataSection(Section):
    root: str | None = Field(None, description="folder of the data; also --data, EDGEQAT_DATA")
    train: str | None = Field(
        None,
        description="training text: file, folder, HF dataset, `demo`; `self`: the model writes it",
    )
    mix: dict[str, float] = Field(
        default_factory=dict,
        description="further training texts, each with its share of the blocks: `{NAME: 0.3}`",
    )
    self_tokens: int = Field(
        250_000, ge=1, description="tokens that the model writes where `train` is `self`"
    )
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
    loss: Literal["all", "answers"] = Field(
        "all", description="tokens of conversations that count: all, or the assistant's alone"
    )
    packing: Literal["joined", "whole"] = Field(
        "joined",
        description="documents one behind the other and cut; or whole, not seeing each other, with "
        "padding behind (for chat data)",
    )
    images: ImageSection = ImageSection()

    @model_validator(mode="after")
    def _a_stream_is_joined(self) -> DataSection:
        if self.streaming and self.packing == "whole":
            raise ValueError("data.packing: a stream is joined; leave it out")
        return self

    @model_validator(mode="after")
    def _shares_leave_some(self) -> DataSection:
        for name, share in self.mix.items():
            if not share > 0:
                raise ValueError(f"data.mix: {name}: {share:g}: a share is above 0")
        if self.mix and sum(self.mix.values()) >= 1:
            raise ValueError(
                f"data.mix: the shares make {sum(self.mix.values()):g}; they must leave some of 1 "
                "to data.train"
            )
        return self
