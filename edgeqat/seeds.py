"""Seeds of what is drawn at random."""

from __future__ import annotations

import numpy as np


def mixed(*numbers: int) -> int:
    """A seed that follows from every bit of `numbers` (each below 2^32) and their order; a zero at
    the end adds nothing.

    torch's generator on the CPU looks at the low 32 bits of its seed alone, so that numbers shifted
    past one another would be lost.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
