"""Where products are taken in bf16, and float models whose weights are kept for that."""

from __future__ import annotations

import torch
from torch import nn

_WORTH = 40_000_000  # parameters of matrices; below, casts take the time that products save


def uses_bf16(wanted: bool | None, model: nn.Module, device: str | None = None) -> bool:
    """What a recipe's `bf16` stands for: absent, whether the device multiplies in bf16 itself and
    the model is large enough to gain by it. Without a device, the one that a trainer takes.
    """
    if wanted is not None:
        return wanted
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return size >= _WORTH and has_bf16_products(device)


def has_bf16_products(device: str) -> bool:
    """Whether a device multiplies in bf16 itself: AMX, AVX512-BF16, or a GPU that does."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False  # ATEN_CPU_CAPABILITY may keep torch below what the processor has
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
