"""The library is there wherever it can be compiled, and the heap options leave the user's alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from edgeqat import native


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")),
    reason="no C++ compiler",
)
def test_a_machine_with_a_compiler_has_the_library():
    assert native.library() is not None, "a compiler is here, but the installation built nothing"


REPORT = """
import ctypes, os
from edgeqat import memory
calls = []
class C:
    def mallopt(self, option, value): calls.append(option)
memory.ctypes.CDLL = lambda name: C()
memory.keep_freed_memory({any_size})
print(calls, os.environ["THP_MEM_ALLOC_ENABLE"])
"""


@pytest.mark.skipif(os.name != "posix", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("given", "any_size", "expected"),
    [
        ({}, False, "[-1, -3] 1"),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False, "[-3] 1"),
        ({"THP_MEM_ALLOC_ENABLE": "0"}, False, "[-1, -3] 0"),
        ({}, True, "[-1, -3, -4] 1"),
        ({"MALLOC_MMAP_MAX_": "65536"}, True, "[-1, -3] 1"),
    ],
)
def test_heap_options_respect_the_users_own(given, any_size, expected):
    ours = ("MALLOC_", "THP_MEM_ALLOC_ENABLE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(any_size=any_size)],
        env=clean | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
