"""`python -m sash` is the `sash` command."""

from sash.cli import main

main()
