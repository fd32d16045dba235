"""`python -m procs.vpn`, as supervisor.conf starts it."""

import sys

from procs.vpn.main import main

sys.exit(main())
