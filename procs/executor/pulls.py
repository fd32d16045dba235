"""Images on their way: one pull for each, however many attempts wait for it, in threads of their
own, so that a pull of minutes keeps no other task from starting, stopping or ending.

Docker itself tries a layer again, not what comes before: that is done here, a few times.
"""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from procs.executor.engine import (
    Engine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
    PullStream,
)
from procs.executor.images import Images
from procs.executor.jobs import Jobs
from procs.executor.pull_progress import Progress
from shared import sentences
from shared.backoff import next_delay_s
from shared.messages import TaskPhase
from shared.sentences import Said

MOST_AT_ONCE = 8  # more only share the line; the others wait their turn
AGAIN_S = 1.0  # before the same is asked for again of an engine that was away
NO_PROGRESS_S = 120.0  # without a byte or a step: it has failed
MOST_TRIES = 3  # of a registry that does not answer as it should: some ten seconds in all
DISK_FULL = "no space left"
LASTING = (  # words of answers that would be the same in ten seconds
    "denied", "unauthorized", "no basic auth credentials", "no matching manifest", "invalid",
    "x509", "HTTP response to HTTPS client", "unsupported", DISK_FULL,
)  # fmt: skip


@dataclass(eq=False)
class _Try:
    """One call of the engine. `note` is the thread's, `end` the loop's."""

    has_begun: bool = False  # else it waits for others to end
    progress: Progress = field(default_factory=Progress)
    percent: int | None = None
    moves: int = 0
    _stream: PullStream | None = None
    _is_over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, stream: PullStream) -> None:
        with self._lock:
            self._stream = stream
            if self._is_over:
                stream.end()
        for line in stream.lines():
            if self.progress.note(line):
                self.percent = self.progress.percent
                self.moves += 1

    def end(self) -> None:
        """The engine ends a pull when nobody listens any more."""
        with self._lock:
            self._is_over = True
            if self._stream is not None:
                self._stream.end()


@dataclass
class _Pull:
    """An image that somebody waits for."""

    began_s: float
    moved_s: float
    percent: int | None = None
    moves_seen: int = 0
    failures: int = 0
    words: str = ""  # of the last failure
    again_s: float = 0.0
    running: _Try | None = None

    def look(self, now_s: float) -> None:
        """Take over what its thread has seen."""
        if self.running is not None and not self.running.has_begun:
            self.moved_s = now_s  # that others don't move is not its end
        if self.running is not None and self.running.moves != self.moves_seen:
            self.moves_seen, self.moved_s = self.running.moves, now_s
            self.percent = max(self.percent or 0, self.running.percent or 0)

    def give_up(self) -> None:
        if self.running is not None:
            self.running.end()


@dataclass(frozen=True)
class Pulled:
    """How a pull ended. `refused`: why it failed."""

    image: str
    took_s: float = 0.0
    refused: Said[TaskPhase] | None = None


@dataclass(frozen=True)
class _End:
    """How a try ended. `away`: the engine; `may_pass`: the same may go well soon."""

    image: str
    words: str = ""
    away: bool = False
    may_pass: bool = False


class Pulls:
    """Belongs to the loop's thread."""

    def __init__(
        self, engine: Engine, images: Images, uniform: Callable[[], float] = random.random
    ) -> None:
        self._engine = engine
        self._images = images
        self._uniform = uniform
        self._jobs: Jobs[_End | Pulled] = Jobs(MOST_AT_ONCE, "pull")
        self._under_way: dict[str, _Pull] = {}
        self._given_up: set[str] = set()  # until it is said

    def fileno(self) -> int:
        return self._jobs.fileno()

    def progress(self, image: str) -> str:
        pull = self._under_way.get(image)
        if pull is None:
            return ""
        if pull.running is None and pull.words:
            return f"to be pulled again: {pull.words}"
        if pull.running is not None and not pull.running.has_begun:
            return "waiting for other images to be pulled"
        return "pulling" if pull.percent is None else f"pulling {pull.percent}%"

    def want(self, images: set[str], now_s: float) -> None:
        """The images that attempts wait for now; a pull of another ends."""
        for image in self._under_way.keys() - images:
            self._under_way.pop(image).give_up()
        for image in sorted(images - self._given_up):
            pull = self._under_way.setdefault(image, _Pull(now_s, now_s))
            pull.look(now_s)
            if now_s - pull.moved_s >= NO_PROGRESS_S:
                self._under_way.pop(image).give_up()
                self._given_up.add(image)
                self._jobs.post(None, Pulled(image, refused=_stalled(image, pull)))
            elif pull.running is None and now_s >= pull.again_s:
                pull.running, pull.moves_seen = _Try(), 0
                self._jobs.submit(pull.running, partial(self._try, image, pull.running))

    def results(self, now_s: float) -> Iterator[Pulled]:
        """The pulls that have ended."""
        for lane, end in self._jobs.results():
            pull = self._under_way.get(end.image)
            if isinstance(end, Pulled):
                self._given_up.discard(end.image)
                yield end
            elif pull is not None and pull.running is lane:  # else it was given up meanwhile
                pull.look(now_s)
                pull.running = None
                yield from self._ended(pull, end, now_s)

    def close(self) -> None:
        for pull in self._under_way.values():
            pull.give_up()
        self._jobs.close()

    def _ended(self, pull: _Pull, end: _End, now_s: float) -> Iterator[Pulled]:
        if end.away:
            pull.again_s = now_s + AGAIN_S
        elif end.may_pass and pull.failures + 1 < MOST_TRIES:
            pull.again_s = now_s + next_delay_s(pull.failures, self._uniform())
            pull.failures += 1
            pull.words = end.words
        else:
            del self._under_way[end.image]
            yield Pulled(end.image, now_s - pull.began_s, _refusal(end, pull.failures + 1))

    def _try(self, image: str, one: _Try) -> _End:
        """In a thread."""
        one.has_begun = True
        try:
            if not self._is_here(image):
                with self._images.pulling(image):
                    one.follow(self._engine.pull(image))
        except NotThereError as err:
            return _End(image, str(err))
        except EngineRefusedError as err:
            words = str(err)
            passes = not one.progress.has_layers and not any(word in words for word in LASTING)
            return _End(image, words, may_pass=passes)
        except EngineAwayError:
            return _End(image, away=True)
        return _End(image)

    def _is_here(self, image: str) -> bool:
        """It may have come since somebody missed it, with a pull that ended just then."""
        try:
            self._engine.image(image)
        except NotThereError:
            return False
        return True


def _refusal(end: _End, tries: int) -> Said[TaskPhase] | None:
    if not end.words:
        return None
    if DISK_FULL in end.words:
        return sentences.IMAGE_NO_ROOM.say(image=end.image, words=end.words)
    words = f"{end.words} ({tries} tries)" if tries > 1 else end.words
    return sentences.IMAGE_NOT_PULLED.say(image=end.image, words=words)


def _stalled(image: str, pull: _Pull) -> Said[TaskPhase]:
    where = "before its first byte" if pull.percent is None else f"at {pull.percent}%"
    if pull.words:
        where = f"{where}, the last try said: {pull.words}"
    return sentences.IMAGE_STALLED.say(image=image, waited_s=f"{NO_PROGRESS_S:g}", where=where)
