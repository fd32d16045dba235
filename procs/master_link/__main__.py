import sys

from procs.master_link.main import main

sys.exit(main())
