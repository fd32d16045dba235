"""How much memory master_link takes while much more than that goes through it.

    python -m tests.bench.through [GB] [AT_ONCE]

Outputs of up to 1 GB, some at once, and a log of 20 MB with each; the archives are one file under
many names, and what the master has got is deleted. The most (PSS) may be 64 MiB.
"""

import asyncio
import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from shared.messages import TaskPhase
from shared.taskdir import ARCHIVE, TaskKey
from tests.bench.cost import pss_mb
from tests.fakes.executor import ROOMY
from tests.fakes.line import MIB, NOTHING, POLL_S, Line, Where, line

MOST_MB = 64 * MIB / 1e6
LARGEST_BYTES = 10**9
LOG_BYTES = 20 * MIB
LONGEST_S = 1800.0


@dataclass
class Figures:
    """`most_mb`: the largest PSS that was seen."""

    seconds: float = 0.0
    most_mb: float = 0.0
    idle_mb: float = 0.0


class Through:
    """Tasks with one archive, a few at once."""

    def __init__(self, made: Line, total_bytes: int, at_once: int) -> None:
        self._line = made
        self._count = max(at_once, -(-total_bytes // LARGEST_BYTES))
        self._bytes = total_bytes // self._count
        self._log_bytes = min(LOG_BYTES, self._bytes // 10)
        self._at_once = asyncio.Semaphore(at_once)
        self._archive = made.home / "archive"
        made.executor.capacity = structs.replace(ROOMY, max_held=at_once + 2)

    async def run(self) -> Figures:
        figures = Figures()
        await asyncio.to_thread(self._write_archive)
        figures.idle_mb = pss_mb(self._line.link_pid())
        began_s = time.monotonic()
        watching = asyncio.create_task(self._watch(figures))
        await self._line.submit(self._count)
        async with asyncio.timeout(LONGEST_S), asyncio.TaskGroup() as group:
            for key in self._line.keys:
                group.create_task(self._one(key))
        watching.cancel()
        figures.seconds = time.monotonic() - began_s
        return figures

    def _write_archive(self) -> None:
        piece = bytes(range(256)) * (MIB // 256)
        self._digest = hashlib.sha256()
        with self._archive.open("wb") as file:
            for at in range(0, self._bytes, MIB):
                part = piece[: min(MIB, self._bytes - at)]
                self._digest.update(part)
                file.write(part)

    async def _watch(self, figures: Figures) -> None:
        while True:
            figures.most_mb = max(figures.most_mb, pss_mb(self._line.link_pid()))
            await asyncio.sleep(POLL_S)

    async def _one(self, key: TaskKey) -> None:
        executor = self._line.executor
        async with self._at_once:
            while key not in executor.held:
                await asyncio.sleep(POLL_S)
            for phase in (TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING):
                executor.move(key, phase)
            for _ in range(self._log_bytes // MIB):
                executor.log(key).write(bytes(MIB))
            (executor.directory(key) / ARCHIVE).hardlink_to(self._archive)
            executor.finish(
                key,
                output_sha256=self._digest.hexdigest(),
                output_bytes=self._bytes,
                output_files=1,
            )
            while key in executor.held:
                await asyncio.sleep(POLL_S)
            for path in (self._line.data / "outputs").glob(f"{key.directory}.*.tar.gz"):
                path.unlink()


async def run(total_bytes: int, at_once: int, data: Path) -> Figures:
    async with line(data, NOTHING, Where(direct=True)) as made:
        return await Through(made, total_bytes, at_once).run()


def main() -> int:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    at_once = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with tempfile.TemporaryDirectory(prefix="hmt-", dir="/tmp") as folder:
        data = Path(folder) / "master"
        figures = asyncio.run(run(int(gigabytes * 1e9), at_once, data))
    print(f"{gigabytes:g} GB, {at_once} at once, {figures.seconds:.0f} s: ", end="")
    print(f"{figures.most_mb:.1f} MB PSS at most (target {MOST_MB:.1f}), ", end="")
    print(f"{figures.idle_mb:.1f} idle")
    return 0 if figures.most_mb <= MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
