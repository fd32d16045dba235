"""`python -m procs.executor`, under supervisord."""

import sys

from procs.executor.main import main

sys.exit(main())
