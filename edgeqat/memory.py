"""Memory of this process: its peak, and keeping what training frees."""

from __future__ import annotations

import ctypes
import os
import resource
import sys


def peak_rss_bytes() -> int:
    """The largest resident size this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# glibc's malloc.h: number and value of what these variables set
_HEAP_OPTIONS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),  # weights of large models do go back
}


_UNMAPPED = {"MALLOC_MMAP_MAX_": (-4, 0)}


def keep_freed_memory(of_any_size: bool = False) -> None:
    """For training on Linux: freed tensors stay with the process, in huge pages, instead of going
    back to the kernel and being mapped again page by page (docs/log/training-speed.md has the
    gain). Before the first large tensor; elsewhere, and where the user set these variables, it does
    nothing. `of_any_size` is for images, where what a layer keeps of a batch is as large as a
    matrix of a large language model, and comes back at every step.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, (option, value) in (_HEAP_OPTIONS | (_UNMAPPED if of_any_size else {})).items():
        if set_option is not None and name not in os.environ:
            set_option(option, value)
