"""`python -m procs.client`."""

from procs.client.main import main

main()
