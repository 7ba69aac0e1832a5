"""The old name of edgeqat.harness.lm, lm-eval's command line with our models in it."""

from __future__ import annotations

import logging
import sys

from edgeqat.errors import EdgeQATError


def main() -> None:
    """Say the new name, and run it."""
    try:
        from edgeqat.harness import lm
    except EdgeQATError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)

    logging.getLogger("edgeqat").warning(
        "edgeqat.evaluate.harness is edgeqat.harness.lm now; write python -m edgeqat.harness.lm"
    )
    lm.main()


if __name__ == "__main__":
    main()
