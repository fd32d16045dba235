"""Cuts the line between worker and master again and again while tasks deliver logs and archives.

    python -m tests.bench.cuts [--cuts 500] [--kill-link N] [--kill-master N] [--tls]
        [--tasks 100] [--log-mb 20] [--output-mb 1000] [--rate-mb N] [--seed N]

Each harm comes when a byte that chance has chosen passes the proxy: it resets or ends that
connection, or all of them, or it kills master_link or the master. Everything must arrive once and
byte by byte, and what is brought to the master again may be 5 % of what there was to bring. What
passed the proxy is told too: there each cut also costs the unfinished chunks of 256 KiB. With
kills give a rate, 3 MB/s: else all has arrived before there were many. A few of each are a test
(tests/master_link/test_cuts.py).
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.fakes.cutting_proxy import How, Wire
from tests.fakes.line import MIB, Line, Load, Where, count_bytes, line

MOST_AGAIN_PCT = 5.0
ALL_SHARE = 0.2  # of the cuts: every connection at once
CUT, KILL_LINK, KILL_MASTER = "cut", "kill link", "kill master"


@dataclass(frozen=True)
class Plan:
    """What is done to which load."""

    load: Load
    tasks: int
    cuts: int = 0
    link_kills: int = 0
    master_kills: int = 0
    tls: bool = False
    seed: int = 0
    delay_s: float = 1.0  # from a kill's byte to the kill, at most
    rate_bytes_s: float = 0.0  # of what passes towards the master; 0: as fast as it goes
    limit_s: float = 3600.0


@dataclass
class Figures:
    """What was done, and every fault that was found."""

    harms: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    payload_bytes: int = 0
    brought_bytes: int = 0
    sent_bytes: int = 0
    connections: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def again_pct(self) -> float:
        return 100 * (self.brought_bytes / self.payload_bytes - 1)

    @property
    def passed_pct(self) -> float:
        """Everything that is not payload, framing and heartbeats too."""
        return 100 * (self.sent_bytes / self.payload_bytes - 1)


class Harms:
    """Does the plan's harms, one after the other, while bytes pass."""

    def __init__(self, line: Line, plan: Plan, figures: Figures) -> None:
        self._line, self._figures = line, figures
        self._random, self._delay_s = random.Random(plan.seed), plan.delay_s
        counts = {CUT: plan.cuts, KILL_LINK: plan.link_kills, KILL_MASTER: plan.master_kills}
        self._left = [name for name, count in counts.items() for _ in range(count)]
        self._random.shuffle(self._left)
        self._kills: set[asyncio.Task[None]] = set()

    def next(self) -> None:
        """Set the trap for the next one."""
        if self._left:
            left_bytes = self._figures.payload_bytes - self._line.brought_bytes()
            gap_bytes = max(left_bytes, 0) * min(2 / (len(self._left) + 1), 0.5)
            at = self._line.proxy.sent_bytes + 1 + self._random.uniform(0, gap_bytes)
            self._line.proxy.at_byte(int(at), partial(self._do, self._left.pop()))

    def _do(self, harm: str, wire: Wire) -> None:
        if harm == CUT:
            harm = self._cut(wire)
            self.next()
        else:
            task = asyncio.create_task(self._kill(harm))
            self._kills.add(task)
            task.add_done_callback(self._kills.discard)
        self._figures.harms[harm] += 1

    def _cut(self, wire: Wire) -> str:
        how = self._random.choice(list(How))
        if self._random.random() < ALL_SHARE:
            self._line.proxy.cut(how)
            return f"{how} of all"
        wire.cut(how)
        return f"{how} of one"

    async def _kill(self, harm: str) -> None:
        await asyncio.sleep(self._random.uniform(0, self._delay_s))
        if harm == KILL_LINK:
            await self._line.kill_link()
        else:
            await self._line.kill_master()
        self.next()

    async def close(self) -> None:
        await asyncio.gather(*self._kills)


async def run(plan: Plan, data: Path) -> Figures:
    figures = Figures(payload_bytes=count_bytes(plan.load, plan.tasks))
    async with line(data, plan.load, Where(tls=plan.tls)) as made:
        began_s = time.monotonic()
        made.proxy.rate_bytes_s = plan.rate_bytes_s
        harms = Harms(made, plan, figures)
        harms.next()
        await made.submit(plan.tasks)
        try:
            await made.all_ended(plan.limit_s)
            figures.faults = await made.faults()
        except TimeoutError:
            figures.faults.append(f"{await made.open_tasks()} tasks have not ended")
        await harms.close()
        figures.seconds = time.monotonic() - began_s
        figures.brought_bytes = made.brought_bytes()
        figures.sent_bytes = made.proxy.sent_bytes
        figures.connections = made.proxy.connections
        figures.faults += _tracebacks((made.home / "log" / "master_link.log").read_text())
    return figures


def _tracebacks(log: str) -> list[str]:
    return [f"a traceback{part[:2000]}" for part in log.split("Traceback")[1:]]


def told(figures: Figures) -> str:
    return (
        f"{dict(figures.harms)}, {figures.seconds:.0f} s, {figures.connections} connections\n"
        f"{figures.payload_bytes / MIB:.1f} MiB to bring; brought again "
        f"{figures.again_pct:.2f} %; past the proxy went {figures.passed_pct:.2f} % more"
    )


def _plan() -> Plan:
    parser = argparse.ArgumentParser()
    for name, default in (("cuts", 500), ("kill-link", 0), ("kill-master", 0), ("tasks", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("log-mb", 20), ("output-mb", 1000), ("rate-mb", 0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    asked = parser.parse_args()
    load = Load(
        log_bytes=int(asked.log_mb * 1e6 / asked.tasks),
        output_bytes=int(asked.output_mb * 1e6 / asked.tasks),
    )
    return Plan(
        load, asked.tasks, asked.cuts, asked.kill_link, asked.kill_master, asked.tls, asked.seed,
        rate_bytes_s=asked.rate_mb * 1e6,
    )  # fmt: skip


def main() -> int:
    plan = _plan()
    with tempfile.TemporaryDirectory(prefix="hmc-", dir="/tmp") as folder:
        figures = asyncio.run(run(plan, Path(folder) / "master"))
    print(f"seed {plan.seed}: {plan.tasks} tasks, {told(figures)}")
    print(*figures.faults or ["no fault"], sep="\n")
    return 1 if figures.faults or figures.again_pct > MOST_AGAIN_PCT else 0


if __name__ == "__main__":
    sys.exit(main())
