"""Images on their way: one pull for each, however many attempts wait for it, in threads of their
own, so that a pull of minutes keeps no other task from starting, stopping or ending."""

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial

from procs.executor.engine import Engine, EngineAwayError, EngineRefusedError, NotThereError
from procs.executor.jobs import Jobs
from shared import sentences
from shared.messages import TaskPhase
from shared.sentences import Said

MOST_AT_ONCE = 4  # more only share the line; the others wait their turn
AGAIN_S = 1.0  # before the same is asked for again of an engine that was away


class _UnwantedError(Exception):
    """Nobody waits for the image any more."""


@dataclass
class _Pull:
    """`wanted` is set by the loop, `progress` by the pull's thread."""

    began_s: float
    progress: str = "pulling"
    wanted: bool = True


@dataclass(frozen=True)
class Pulled:
    """How a pull ended. `refused`: it never will come; `away`: ask again when it is back."""

    image: str
    took_s: float = 0.0
    refused: Said[TaskPhase] | None = None
    away: bool = False


class Pulls:
    """Belongs to the loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: Jobs[Pulled] = Jobs(MOST_AT_ONCE, "pull")
        self._under_way: dict[Hashable, _Pull] = {}
        self._away_until_s: dict[str, float] = {}

    def fileno(self) -> int:
        return self._jobs.fileno()

    def progress(self, image: str) -> str:
        found = self._under_way.get(image)
        return found.progress if found else ""

    def want(self, images: set[str], now_s: float) -> None:
        """The images that attempts wait for now; a pull of another ends at its next word."""
        for image, pull in self._under_way.items():
            pull.wanted = image in images
        self._away_until_s = {i: at for i, at in self._away_until_s.items() if at > now_s}
        for image in sorted(images - self._under_way.keys() - self._away_until_s.keys()):
            pull = self._under_way[image] = _Pull(now_s)
            self._jobs.submit(image, partial(self._pull, image, pull))

    def results(self, now_s: float) -> Iterator[Pulled]:
        """The pulls that have ended."""
        for image, pulled in self._jobs.results():
            del self._under_way[image]
            if pulled.away:
                self._away_until_s[pulled.image] = now_s + AGAIN_S
            yield pulled

    def close(self) -> None:
        self._jobs.close()

    def _pull(self, image: str, pull: _Pull) -> Pulled:
        try:
            if not self._is_here(image):
                self._engine.pull(image, _noting(pull))
        except _UnwantedError:
            return Pulled(image, away=True)
        except EngineRefusedError as err:
            return Pulled(image, refused=sentences.IMAGE_NOT_PULLED.say(image=image, words=err))
        except EngineAwayError:
            return Pulled(image, away=True)
        return Pulled(image, time.monotonic() - pull.began_s)

    def _is_here(self, image: str) -> bool:
        """It may have come since somebody missed it, with a pull that ended just then."""
        try:
            self._engine.image(image)
        except NotThereError:
            return False
        return True


def _noting(pull: _Pull) -> Callable[[str], None]:
    def note(text: str) -> None:
        pull.progress = text
        if not pull.wanted:
            raise _UnwantedError

    return note
