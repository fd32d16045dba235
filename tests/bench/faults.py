"""What the network does to a worker, one fault after the other, in a namespace of its own.

    python -m tests.bench.faults [FAULT …]

Each time tasks deliver over TLS while the fault lasts; it is healed, and all must arrive. Prints
how long the fault lasted, how many connections were tried, and how soon after it all was there. A
few are a test (tests/master_link/test_network.py).
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from shared.bus import Tap
from shared.messages import LinkState
from tests.fakes.line import Line, Load, Where, line
from tests.fakes.netns import Wire, wire

NAME = "master.test"
LOAD = Load(log_bytes=50_000, output_bytes=500_000)
TASKS = 4
LONGEST_S = 240.0


def nothing(_: Wire) -> None:
    """As it is."""


@dataclass(frozen=True)
class Fault:
    """`begin` and `end` change the wire. `at_start`: before the worker's first word."""

    begin: Callable[[Wire], None]
    end: Callable[[Wire], None] = Wire.heal
    lasts_s: float = 45.0
    at_start: bool = False
    load: Load = LOAD


FAULTS = {
    "refused": Fault(Wire.reset, lasts_s=30.0),
    "reset for a moment": Fault(Wire.reset, lasts_s=1.0),
    "black hole": Fault(Wire.swallow, at_start=True),
    "half-open": Fault(Wire.swallow, lasts_s=60.0),
    "30 % lost": Fault(lambda one: one.lose(0.3)),
    "no name": Fault(Wire.resolve, lambda one: one.resolve(NAME), 20.0, at_start=True),
    "2 Mbit/s": Fault(
        lambda one: one.limit("2mbit"), nothing, 0.0, load=Load(50_000, 1_500_000)
    ),
}


@dataclass
class Figures:
    """What was seen. `late_s`: the oldest acknowledged heartbeat while the tasks delivered."""

    phases: list[str] = field(default_factory=list)
    tries: int = 0
    after_s: float = 0.0
    late_s: float = 0.0
    faults: list[str] = field(default_factory=list)


async def suffer(fault: Fault, data: Path) -> Figures:
    figures = Figures()
    with wire() as one:
        one.resolve(NAME)
        if fault.at_start:
            fault.begin(one)
        where = Where(wire=one, name=NAME, ready=not fault.at_start)
        async with line(data, fault.load, where) as made:
            await made.submit(TASKS)
            if not fault.at_start:
                await asyncio.to_thread(fault.begin, one)
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(fault.end, one)
            began_s = time.monotonic()
            watching = asyncio.create_task(_watch(made, figures))
            try:
                await made.all_ended(LONGEST_S)
                figures.after_s = time.monotonic() - began_s
                figures.faults = await made.faults()
            except TimeoutError:
                figures.faults.append(f"{await made.open_tasks()} tasks have not ended")
            watching.cancel()
            await asyncio.wait((watching,))
            log = (made.home / "log" / "master_link.log").read_text()
            figures.tries = log.count("the link is down")
            figures.faults += ["a traceback"] * ("Traceback" in log)
    return figures


async def _watch(made: Line, figures: Figures) -> None:
    with closing(Tap(made.home)) as tap:
        while True:
            heard = await asyncio.to_thread(tap.next, 0.1)
            if heard is not None and isinstance(heard[1], LinkState) and heard[1].synced:
                _note(heard[1], figures)


def _note(state: LinkState, figures: Figures) -> None:
    if state.heartbeat_acked_unix_s:
        late_s = time.time() - state.heartbeat_acked_unix_s
        figures.late_s = max(figures.late_s, late_s)
    if state.phase not in figures.phases:
        figures.phases.append(state.phase)


def main() -> int:
    wrong = 0
    for name in sys.argv[1:] or FAULTS:
        fault = FAULTS[name]
        with tempfile.TemporaryDirectory(prefix="hmf-", dir="/tmp") as folder:
            figures = asyncio.run(suffer(fault, Path(folder) / "master"))
        print(f"{name}: {fault.lasts_s:.0f} s, {figures.tries} failed tries, all there ", end="")
        print(f"{figures.after_s:.1f} s after it; oldest acknowledged heartbeat ", end="")
        print(f"{figures.late_s:.1f} s;", *figures.faults or ["no fault"], flush=True)
        wrong += bool(figures.faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
