"""`python -m flows.cli` is `concentrate`."""

from flows.cli import main

main()
