"""What each monitor costs at its one reading a second: CPU and memory (PSS).

    python -m tests.bench.monitor [SECONDS] [host|gpu…]

`gpu` is one set of CARDS cards on a faked library, whose calls cost nothing: what the real driver
takes for its answers comes on top.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from shared.messages import GpuLoad, HostLoad, Message
from tests.bench.cost import cpu_s, pss_mb
from tests.fakes.fake_nvml import FakeCard, FakeNvml
from tests.fakes.supervised import Supervised, supervised
from tests.monitor.gpu_kit import watched

MOST_PCT, MOST_MB = 0.5, 25.0  # of one core, of memory
CARDS = 8
SETTLE_S = 5.0  # the start is not what is measured


def gpus(folder: Path) -> AbstractContextManager[Supervised]:
    nvml = FakeNvml(folder, cards=[FakeCard(f"GPU-{n}") for n in range(CARDS)])
    return watched(nvml, ((),))


def host(folder: Path) -> AbstractContextManager[Supervised]:
    return supervised(["monitor@host"])


Start = Callable[[Path], AbstractContextManager[Supervised]]
MONITORS: dict[str, tuple[str, type[Message], Start]] = {
    "host": ("monitor@host", HostLoad, host),
    "gpu": ("monitor@gpu0", GpuLoad, gpus),
}


def measure(which: str, seconds: float) -> bool:
    name, kind, start = MONITORS[which]
    with tempfile.TemporaryDirectory(prefix="hmb-") as folder, start(Path(folder)) as worker:
        worker.next(kind)
        time.sleep(SETTLE_S)
        pid = worker.pids()[name]
        began_s, before_s = time.monotonic(), cpu_s(pid)
        time.sleep(seconds)
        spent_pct = 100 * (cpu_s(pid) - before_s) / (time.monotonic() - began_s)
        memory_mb = pss_mb(pid)
        assert worker.pids()[name] == pid
    print(f"{name}: {spent_pct:.2f} % of one core (target {MOST_PCT}), ", end="")
    print(f"{memory_mb:.1f} MB PSS (target {MOST_MB:.0f})")
    return spent_pct <= MOST_PCT and memory_mb <= MOST_MB


if __name__ == "__main__":
    words = sys.argv[1:]
    wanted_s = float(words.pop(0)) if words and words[0].isdigit() else 60.0
    within = [measure(which, wanted_s) for which in words or MONITORS]
    sys.exit(not all(within))
