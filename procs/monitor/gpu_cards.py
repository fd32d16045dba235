"""`python -m procs.monitor cards`: the cards that the driver has, as JSON on stdout; for
`hivemind-worker configure`. Exit code 3: there is no driver; 1: it does not work. stderr says why.
"""

import sys
from collections.abc import Sequence

import msgspec

from procs.monitor.gpu_core import LIBRARY_NOT_FOUND
from procs.monitor.gpu_nvml import DriverError, Nvml

NO_DRIVER = 3


def main(arguments: Sequence[str]) -> int:
    nvml = Nvml()
    try:
        nvml.open()
    except DriverError as err:
        print(err, file=sys.stderr)
        return NO_DRIVER if err.code == LIBRARY_NOT_FOUND else 1
    found = [{"index": d.index, "uuid": d.uuid, "name": d.name} for d in nvml.cards.values()]
    nvml.close()
    print(msgspec.json.encode(found).decode())
    return 0
