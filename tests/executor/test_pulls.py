"""Pulls: one for each image, and ended when nobody waits any more."""

import select
import threading
from collections.abc import Callable, Iterator

import pytest

from procs.executor.engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
)
from procs.executor.pulls import AGAIN_S, Pulled, Pulls
from procs.executor.sandbox import Image

DEADLINE_S = 10.0


class Registry(DockerEngine):
    """An engine whose pulls do as the test says."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.asked: list[str] = []
        self.here: set[str] = set()
        self.answers: dict[str, Exception] = {}
        self.go = threading.Event()
        self.speaks = threading.Event()

    def image(self, name: str) -> Image:
        if name in self.here:
            return Image(name)
        raise NotThereError(name)

    def pull(self, name: str, progress: Callable[[str], None]) -> None:
        self.asked.append(name)
        if name in self.answers:
            raise self.answers[name]
        progress("pulling 7%")
        self.speaks.set()
        self.go.wait(DEADLINE_S)
        progress("pulling 99%")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def pulls(registry: Registry) -> Iterator[Pulls]:
    made = Pulls(registry)
    yield made
    registry.go.set()
    made.close()


def ended(pulls: Pulls, now_s: float = 0.0) -> list[Pulled]:
    assert select.select([pulls.fileno()], [], [], DEADLINE_S)[0], "no pull ended"
    return list(pulls.results(now_s))


def test_one_pull_for_all_who_wait_with_its_progress(pulls: Pulls, registry: Registry) -> None:
    for _ in range(3):
        pulls.want({"a"}, 0.0)
    assert registry.speaks.wait(DEADLINE_S)
    assert pulls.progress("a") == "pulling 7%"
    assert pulls.progress("b") == ""
    registry.go.set()
    (pulled,) = ended(pulls)
    assert (pulled.image, pulled.refused, pulled.away) == ("a", None, False)
    assert registry.asked == ["a"]


def test_an_image_that_has_come_meanwhile_is_not_pulled(
    pulls: Pulls, registry: Registry
) -> None:
    registry.here.add("a")
    pulls.want({"a"}, 0.0)
    (pulled,) = ended(pulls)
    assert (pulled.refused, pulled.away, registry.asked) == (None, False, [])


def test_a_refusal_is_said_with_the_images_name(pulls: Pulls, registry: Registry) -> None:
    registry.answers["a"] = EngineRefusedError("no such thing")
    pulls.want({"a"}, 0.0)
    (pulled,) = ended(pulls)
    assert pulled.refused is not None
    assert pulled.refused.text.startswith("image a could not be pulled: no such thing; ")


def test_an_engine_that_is_away_is_asked_again_a_little_later(
    pulls: Pulls, registry: Registry
) -> None:
    registry.answers["a"] = EngineAwayError("gone")
    pulls.want({"a"}, 0.0)
    assert ended(pulls, 10.0) == [Pulled("a", away=True)]
    pulls.want({"a"}, 10.0 + AGAIN_S - 0.1)
    assert registry.asked == ["a"]
    pulls.want({"a"}, 10.0 + AGAIN_S)
    assert ended(pulls) == [Pulled("a", away=True)]
    assert registry.asked == ["a", "a"]


def test_a_pull_that_nobody_waits_for_ends_at_its_next_word(
    pulls: Pulls, registry: Registry
) -> None:
    pulls.want({"a"}, 0.0)
    assert registry.speaks.wait(DEADLINE_S)
    pulls.want(set(), 0.0)
    registry.go.set()
    assert ended(pulls) == [Pulled("a", away=True)]
