"""`python -m procs.monitor host`, as supervisor.conf starts it, or `gpuN`, or `cards`: each imports
what it needs and no more."""

import sys

arguments = sys.argv[1:]
if arguments[:1] == ["cards"]:
    from procs.monitor.gpu_cards import main
elif arguments and arguments[0].startswith("gpu"):
    from procs.monitor.gpu import main
else:
    from procs.monitor.main import main

sys.exit(main(arguments))
