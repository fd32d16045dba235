"""Watching an engine."""

import time
from collections.abc import Iterator
from typing import cast

from procs.executor.engine import Engine, EngineAwayError
from procs.executor.watch import BELL_AGAIN_S, Died, Watch
from shared.taskdir import TaskKey
from tests.shared.polling import until

LISTENED = 4
DEAD = Died(TaskKey("t", 1))


class Closing:
    """An engine, or something before it, that ends each stream of events at once."""

    def __init__(self) -> None:
        self.listened_s: list[float] = []

    def ping(self) -> None:
        raise EngineAwayError("it is not asked for more here")

    def deaths(self, home: str) -> Iterator[TaskKey]:
        self.listened_s.append(time.monotonic())
        return iter([TaskKey("t", 1)])


def test_a_stream_that_ends_at_once_is_not_asked_for_without_a_pause() -> None:
    engine = Closing()
    watch = Watch(cast(Engine, engine), "/h", "runc")
    watch.beat(time.monotonic(), idle=True)
    until(lambda: len(engine.listened_s) >= LISTENED, "it is asked for again")
    news = [one for one in watch.results(time.monotonic()) if isinstance(one, Died)]
    assert news[:4] == [DEAD, Died(None), DEAD, Died(None)]
    listened_s = engine.listened_s[:LISTENED]
    assert listened_s[-1] - listened_s[0] >= (LISTENED - 1) * BELL_AGAIN_S
    watch.close()
