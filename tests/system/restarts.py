"""Kills each part of a whole worker in turn, and tells how long each was away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.system.engine.private import PrivateEngine
from tests.system.whole import EVERY_S, PROGRAMS, Worker, until


@dataclass(frozen=True)
class Restart:
    """One death: what died, seconds until it was back, which others have another pid now."""

    what: str
    away_s: float
    changed: set[str]

    def __str__(self) -> str:
        return f"{self.what:<12} back after {self.away_s * 1000:6.0f} ms"


def each_killed_in_turn(worker: Worker, engine: PrivateEngine) -> Iterator[Restart]:
    """Every program, then supervisord, then the engine; each only once all is well again."""
    worker.spoken(*PROGRAMS)
    for name in PROGRAMS:
        before = worker.pids()
        away_s = worker.kill_program(name)
        worker.spoken(*PROGRAMS)
        yield Restart(name, away_s, _changed(before, worker.pids()) - {name})
    yield _supervisord_killed(worker)
    before = worker.pids()
    engine.kill()
    began_s = time.monotonic()
    engine.start()
    yield Restart("dockerd", time.monotonic() - began_s, _changed(before, worker.pids()))


def _changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in PROGRAMS if before.get(name) != after.get(name)}


def _supervisord_killed(worker: Worker) -> Restart:
    worker.kill()
    began_s = time.monotonic()
    worker.start()
    until(worker.is_whole, "every program is back", EVERY_S)
    away_s = time.monotonic() - began_s
    worker.spoken(*PROGRAMS)
    return Restart("supervisord", away_s, set())
