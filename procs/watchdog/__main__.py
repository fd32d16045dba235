"""`python -m procs.watchdog`, as supervisor.conf starts it."""

import sys

from procs.watchdog.main import main

sys.exit(main())
