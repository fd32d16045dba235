"""How large a week of samples is on the largest machine that is kept whole, and what a batch costs.

    python -m tests.bench.week [HOURS]

Written as monitor@host writes it, only faster: as many cores and GPUs as samples are kept of.
"""

import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from procs.monitor.gpu_store import MOST_GPUS
from procs.monitor.store import LARGEST_BYTES, MOST_CORES, Sample, Store
from procs.monitor.writer import BATCH
from shared.messages import GpuSample, HostLoad

BEGAN_UNIX_S = 1_800_000_000
WEEK_H = 7 * 24
KINDS = 50  # of readings, over and over: to make each anew would take longer than to write it


def load(rng: random.Random, at: int) -> HostLoad:
    """Figures as long as real ones."""
    return HostLoad(
        at_s=0.0, cpu_pct=100 * rng.random(), memory_pct=100 * rng.random(),
        memory_used_bytes=rng.randrange(2**37), swap_pct=100 * rng.random(),
        disk_free_bytes=rng.randrange(2**42), disk_total_bytes=2**42,
        network_received_bytes=at * 1000, network_sent_bytes=at * 1000, load_1m=rng.random(),
        pressure_cpu_pct=100 * rng.random(), pressure_memory_pct=100 * rng.random(),
        pressure_io_pct=100 * rng.random(), tasks_cpu_pct=100 * rng.random(),
        tasks_memory_bytes=rng.randrange(2**37), temperature_c=100 * rng.random(),
        cores_pct=tuple(rng.randrange(101) for _ in range(MOST_CORES)),
    )  # fmt: skip


def card(rng: random.Random, number: int) -> GpuSample:
    return GpuSample(
        index=number, uuid=f"GPU-{number}", name="", util_pct=float(rng.randrange(101)),
        memory_used_bytes=rng.randrange(2**37), temperature_c=float(rng.randrange(90)),
        power_w=700 * rng.random(),
    )  # fmt: skip


def batches(hours: int) -> Iterator[list[Sample]]:
    rng = random.Random(1)
    loads = [load(rng, BEGAN_UNIX_S) for _ in range(KINDS)]
    cards = [[card(rng, number) for number in range(MOST_GPUS)] for _ in range(KINDS)]
    for began in range(BEGAN_UNIX_S, BEGAN_UNIX_S + 3600 * hours, BATCH):
        batch: list[Sample] = []
        for at in range(began, began + BATCH):
            batch += [(at, loads[at % KINDS]), *((at, gpu) for gpu in cards[at % KINDS])]
        yield batch


def largest(folder: Path, hours: int) -> int:
    path = folder / "load.db"
    store = Store(path, logging.getLogger("bench"))
    slowest_s = spent_s = 0.0
    for batch in batches(hours):
        began_s = time.thread_time()
        store.write(batch)
        took_s = time.thread_time() - began_s
        slowest_s, spent_s = max(slowest_s, took_s), spent_s + took_s
    count = math.ceil(3600 * hours / BATCH)
    print(f"{count} batches, each {1e3 * spent_s / count:.1f} ms of CPU, ", end="")
    print(f"at most {1e3 * slowest_s:.0f} ms")
    store.close()
    return path.stat().st_size


def main(hours: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="hmb-") as folder:
        size = largest(Path(folder), hours)
    print(f"{hours} h of {MOST_CORES} cores and {MOST_GPUS} GPUs: {size / 1e6:.1f} MB", end=" ")
    print(f"(limit {LARGEST_BYTES / 1e6:.0f} MB)")
    return size < LARGEST_BYTES


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]) if len(sys.argv) > 1 else WEEK_H))
