"""`python -m procs.cli`."""

from procs.cli.main import main

main()
