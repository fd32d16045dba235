"""`python -m procs.monitor host`, as supervisor.conf starts it."""

import sys

from procs.monitor.main import main

sys.exit(main(sys.argv[1:]))
