"""Sections of a recipe that say how training goes: `train`, and the terms of the loss, `distill`,
`guide` and `correct`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from edgeqat.recipe.section import Section


class CorrectSection(Section):
    """Layer correction: block outputs matched to the float model's (2507.17768, section 3.3)."""

    weight: float = Field(0.0, ge=0, description="beta, weight of the term (0: not computed)")
    form: Literal["mse", "kl"] = Field(
        "mse", description="mse: normalised squared error; kl: the paper's, over channels"
    )
    blocks: str = Field("auto", description="which blocks: auto, or a glob pattern of modules")


class LowRankSection(Section):
    rank: int = Field(32, ge=1, description="rank r of the adapters")
    alpha: int = Field(32, ge=1, description="factor of the adapter: alpha / rank")
    base: Literal["float32", "bf16", "int8"] = Field(
        "bf16", description="how the frozen weights are kept"
    )


class BlockSection(Section):
    """Decoder layers trained one by one against the float model's, before the whole model is."""

    passes: int = Field(
        0, ge=0, description="passes over the calibration text, layer by layer (0: off)"
    )
    learning_rate: float = Field(
        0.02, gt=0, description="peak learning rate, in quantization steps of a weight"
    )
    bf16: bool | None = Field(
        None,
        description="bf16 autocast; absent: from 40M parameters, where the processor has it",
    )


LARGEST_BF16_BETA = 0.99


class TrainSection(Section):
    method: Literal["full", "lowrank", "scales"] = Field(
        "full",
        description="train the weights, low-rank adapters inside the rounding, or scales and norms",
    )
    lowrank: LowRankSection = LowRankSection()
    blocks: BlockSection = BlockSection()
    embedding: bool = Field(True, description="train embedding and head of a language model too")
    steps: int = Field(200, ge=0, description="optimizer steps")
    epochs: float | None = Field(
        None, gt=0, description="passes over the data (or coreset) instead of steps"
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="time for the whole run; it chooses steps, learning rate and `blocks`",
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
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls after warm-up"
    )
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices (never of scales)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    bf16: bool | None = Field(
        None,
        description="bf16 autocast; absent: from 40M parameters, where the processor has it",
    )
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
    weight: float = Field(
        1.0, ge=0, le=1, description="gamma: share of KL in the loss; cross-entropy has the rest"
    )
    temperature: float = Field(1.0, gt=0, description="tau of the softened distributions")
    teacher: str | None = Field(
        None, description="another model as teacher; absent: the float model itself"
    )
    kept: int | None = Field(
        None,
        ge=1,
        description="keep this many of the teacher's likeliest tokens on disk, and train without "
        "it in memory; absent: it runs in every step",
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
