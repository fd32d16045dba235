"""Looks after the engine: is it there, what does it list, who dies. In threads of its own, so
that an engine that hangs is known whatever hangs in it. Events are only the bell; the list is
the truth. What was seen goes to the loop as news; nothing is decided here."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from procs.executor.engine import About, Engine, EngineAwayError, EngineRefusedError, Seen
from procs.executor.jobs import Jobs
from shared.taskdir import TaskKey

PING_EACH_S = 1.0  # with PING_S of engine.py: an engine that hangs is known within 3 s
LOOK_EACH_S = 5.0
IDLE_LOOK_EACH_S = 30.0  # with nothing held there is only what an earlier life left
BELL_AGAIN_S, BELL_SELDOM_S = 0.1, 1.0  # before events are asked for again, at first and then:
# a stream that breaks is what tells of an engine that was away for less than a ping's pause
NO_RUNTIME = "no runtime {0} in Docker: name it in its daemon.json, or set SANDBOX=runc"
PING, LOOK, BELL = "ping", "look", "bell"
THREADS = 3  # one for each of these: nothing else may ever make the ping wait


@dataclass(frozen=True)
class EngineIs:
    """The engine, or None and why it is away."""

    about: About | None
    detail: str = ""


@dataclass(frozen=True)
class Listed:
    """What it listed; asked for at `began_s`."""

    seen: tuple[Seen, ...]
    began_s: float


@dataclass(frozen=True)
class Died:
    """A container of ours; None: the stream of events ended."""

    key: TaskKey | None


News = EngineIs | Listed | Died


class Watch:
    """Belongs to the loop's thread."""

    def __init__(self, engine: Engine, home: str, runtime: str) -> None:
        self._engine = engine
        self._runtime = runtime
        self._home = home
        self._jobs: Jobs[News | None] = Jobs(THREADS, "watch")
        self._ping_due_s = self._look_due_s = 0.0
        self.about: About | None = None
        self.detail = "not asked yet"

    def fileno(self) -> int:
        return self._jobs.fileno()

    def beat(self, now_s: float, *, idle: bool) -> None:
        if now_s >= self._ping_due_s and not self._jobs.is_busy(PING):
            self._ping_due_s = now_s + PING_EACH_S / 2  # each beat
            self._jobs.submit(PING, partial(self._ping, self.about))
        if self.about and now_s >= self._look_due_s and not self._jobs.is_busy(LOOK):
            self._look_due_s = now_s + (IDLE_LOOK_EACH_S if idle else LOOK_EACH_S)
            self._jobs.submit(LOOK, self._look)
        if not self._jobs.is_busy(BELL):
            self._jobs.submit(BELL, self._listen)

    def look_soon(self) -> None:
        self._look_due_s = 0.0

    def results(self, now_s: float) -> Iterator[News]:
        """What was seen since; `about` and `detail` are true when it is given out."""
        for _, news in self._jobs.results():
            if isinstance(news, EngineIs):
                if (news.about is None) != (self.about is None):
                    self._look_due_s = 0.0
                self.about, self.detail = news.about, news.detail
            if news == Died(None):
                self._ping_due_s = 0.0
            if news is not None:
                yield news

    def close(self) -> None:
        self._jobs.close()

    # -------------------------------------------------------------- in its threads

    def _ping(self, known: About | None) -> EngineIs:
        try:
            self._engine.ping()
            about = known or self._engine.about()
            if self._runtime not in about.runtimes:
                return EngineIs(None, NO_RUNTIME.format(self._runtime))
            return EngineIs(about)
        except (EngineAwayError, EngineRefusedError) as err:
            return EngineIs(None, str(err))

    def _look(self) -> Listed | None:
        began_s = time.monotonic()
        try:
            return Listed(tuple(self._engine.seen(self._home)), began_s)
        except (EngineAwayError, EngineRefusedError):
            return None  # the ping says so

    def _listen(self) -> None:
        """Without end. A stream that ends at once is no more asked for than one that is refused."""
        pause_s = BELL_AGAIN_S
        while True:
            began_s = time.monotonic()
            with suppress(EngineAwayError, EngineRefusedError):
                deaths = self._engine.deaths(self._home)
                with suppress(EngineAwayError, EngineRefusedError):
                    for key in deaths:
                        self._jobs.post(BELL, Died(key))
                self._jobs.post(BELL, Died(None))
            if time.monotonic() >= began_s + BELL_SELDOM_S:
                pause_s = BELL_AGAIN_S
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, BELL_SELDOM_S)
