"""`python -m edgeqat.cli` is the `edgeqat` command."""

from edgeqat.cli import main

main()
