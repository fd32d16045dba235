"""What an idle worker costs: memory (PSS) and CPU of supervisord and all that it started.

    python -m tests.bench.footprint [SECONDS]

The worker is registered with a master, has nothing to do, and is left alone for as long first.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from tests.bench.cost import cpu_s, family, pss_mb
from tests.bench.executor import connected, own_engine
from tests.system.whole import short_folder

MOST_MB, MOST_PCT = 180.0, 1.0


def command(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return " ".join(words[1:4])


async def measure(seconds: float) -> bool:
    with own_engine() as engine, short_folder() as folder:
        async with connected(engine, folder / "c") as (worker, _):
            await asyncio.sleep(seconds)
            pids = list(family(worker.pid))
            before = {pid: cpu_s(pid) for pid in pids}
            began_s = time.monotonic()
            await asyncio.sleep(seconds)
            spent_s = time.monotonic() - began_s
            assert list(family(worker.pid)) == pids, "a process came or went"
            memory = {pid: pss_mb(pid) for pid in pids}
            cpu = {pid: 100 * (cpu_s(pid) - before[pid]) / spent_s for pid in pids}
            print(f"over {spent_s:.0f} s, load average {os.getloadavg()[0]:.2f}")
            for pid in pids:
                print(f"  {memory[pid]:6.1f} MB {cpu[pid]:6.2f} %   {command(pid)}")
    total_mb, total_pct = sum(memory.values()), sum(cpu.values())
    print(f"in all {total_mb:.1f} MB PSS (target {MOST_MB:g}), ", end="")
    print(f"{total_pct:.2f} % of one core (target {MOST_PCT:g})")
    return total_mb <= MOST_MB and total_pct <= MOST_PCT


if __name__ == "__main__":
    wanted = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    sys.exit(not asyncio.run(measure(wanted)))
