"""`python -m procs.web`."""

import sys

from procs.web.main import main

sys.exit(main())
