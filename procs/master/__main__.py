"""`python -m procs.master serve`."""

from procs.master.cli import main

main()
