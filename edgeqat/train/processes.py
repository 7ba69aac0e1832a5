"""The processes of one run: one, or several started by `torchrun` or `accelerate launch`.

All of them load the inputs and train; the first one evaluates, decides and writes. Alone, every
function here is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object
from torch import Tensor

T = TypeVar("T")


def count() -> int:
    """How many processes take part."""
    return _state().num_processes


def number() -> int:
    """That of this process, from 0."""
    return _state().process_index


def device() -> torch.device:
    """Where this process computes."""
    place: torch.device = _state().device
    return place


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return _state().is_main_process


def wait() -> None:
    """Return when every process has come here."""
    _state().wait_for_everyone()


def broadcast_from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, in every process."""
    values: list[Any] = [compute() if is_first() else None]
    return broadcast_object_list(values)[0] if count() > 1 else values[0]


def gathered_values(value: T) -> list[T]:
    """The value of every process, in their order, in every process."""
    return gather_object([value]) if count() > 1 else [value]


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())


def shard(count: int) -> Tensor:
    """The numbers of 0..count-1 this process works on: equally many in each, the last ones twice
    where they do not divide.
    """
    each = -(-count // _state().num_processes)
    return (torch.arange(each) + each * _state().process_index).clamp(max=count - 1)


def gathered(part: Tensor, count: int) -> Tensor:
    """What the processes computed of their shards (each, ...) as one tensor (count, ...) on the
    CPU, in every process.
    """
    if _state().num_processes == 1:
        return part[:count].cpu()
    return gather(part.to(_state().device)).cpu()[:count]
