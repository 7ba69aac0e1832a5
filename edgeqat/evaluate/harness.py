"""The old name of edgeqat.harness.lm, lm-eval's command line with our models in it."""

from __future__ import annotations

import logging


def main() -> None:
    """Say the new name, and run it."""
    from edgeqat.harness import lm

    logging.getLogger("edgeqat").warning(
        "edgeqat.evaluate.harness is edgeqat.harness.lm now; write python -m edgeqat.harness.lm"
    )
    lm.main()


if __name__ == "__main__":
    main()
