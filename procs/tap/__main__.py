"""`python -m procs.tap`."""

import sys

from procs.tap.main import main

sys.exit(main())
