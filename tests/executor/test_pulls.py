"""Pulls: one for each image, ended when nobody waits or nothing moves, tried again if it helps."""

import select
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from procs.executor.engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    LocalImage,
    NotThereError,
    PullStream,
)
from procs.executor.images import Images
from procs.executor.pulls import (
    AGAIN_S,
    MOST_AT_ONCE,
    MOST_TRIES,
    NO_PROGRESS_S,
    Pulled,
    Pulls,
)
from procs.executor.sandbox import Image

DEADLINE_S = 10.0
REFUSED_503 = EngineRefusedError("received unexpected HTTP status: 503 Service Unavailable")


class Stream:
    """Lines as the test says them."""

    def __init__(self) -> None:
        self.said: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()
        self.ended = threading.Event()
        self.heard = threading.Semaphore(0)

    def lines(self) -> Iterator[dict[str, Any]]:
        while (line := self.said.get()) is not None:
            if isinstance(line, Exception):
                raise line
            yield line
            self.heard.release()

    def end(self) -> None:
        self.ended.set()
        self.said.put(EngineAwayError("ended"))

    def say(self, *lines: dict[str, Any]) -> None:
        """Returns when they have been heard."""
        for line in lines:
            self.said.put(line)
            assert self.heard.acquire(timeout=DEADLINE_S)


class Registry(DockerEngine):
    """An engine whose pulls do as the test says."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.asked: list[str] = []
        self.here: set[str] = set()
        self.answers: list[Exception] = []
        self.streams: SimpleQueue[Stream] = SimpleQueue()
        self.silent = threading.Event()  # set: the next pull waits for its registry
        self.speak = threading.Event()

    def image(self, name: str) -> Image:
        if name in self.here:
            return Image(name)
        raise NotThereError(name)

    def images(self) -> list[LocalImage]:
        return []

    def pull(self, name: str) -> PullStream:
        self.asked.append(name)
        if self.answers:
            raise self.answers.pop(0)
        stream = Stream()
        self.streams.put(stream)
        if self.silent.is_set():
            self.speak.wait(DEADLINE_S)
        return stream

    def stream(self) -> Stream:
        return self.streams.get(timeout=DEADLINE_S)


def layer(current: int | None = None, name: str = "l") -> dict[str, Any]:
    if current is None:
        return {"status": "Pulling fs layer", "id": name}
    detail = {"current": current, "total": 100}
    return {"status": "Downloading", "id": name, "progressDetail": detail}


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.speak.set()


@pytest.fixture
def pulls(registry: Registry, tmp_path: Path) -> Iterator[Pulls]:
    images = Images(registry, tmp_path, "", 100)
    made = Pulls(registry, images, uniform=lambda: 0.5)
    yield made
    made.close()


def ended(pulls: Pulls, now_s: float = 0.0) -> list[Pulled]:
    """What the next wake brings."""
    assert select.select([pulls.fileno()], [], [], DEADLINE_S)[0], "no pull ended"
    return list(pulls.results(now_s))


def refused(pulls: Pulls, now_s: float = 0.0) -> str:
    (pulled,) = ended(pulls, now_s)
    assert pulled.refused is not None
    return pulled.refused.text


def test_one_pull_for_all_who_wait_with_its_progress(pulls: Pulls, registry: Registry) -> None:
    for _ in range(3):
        pulls.want({"a"}, 0.0)
    stream = registry.stream()
    assert pulls.progress("a") == "pulling"
    stream.say(layer(), layer(40))
    pulls.want({"a"}, 1.0)
    assert pulls.progress("a") == "pulling 20%"
    assert pulls.progress("b") == ""
    stream.said.put(None)
    assert ended(pulls, 3.0) == [Pulled("a", took_s=3.0)]
    assert registry.asked == ["a"]
    assert pulls.progress("a") == ""


def test_an_image_that_has_come_meanwhile_is_not_pulled(pulls: Pulls, registry: Registry) -> None:
    registry.here.add("a")
    pulls.want({"a"}, 0.0)
    assert ended(pulls) == [Pulled("a")]
    assert registry.asked == []


@pytest.mark.parametrize(
    "refusal",
    [
        NotThereError("manifest unknown"),
        EngineRefusedError("Head …: no basic auth credentials"),
        EngineRefusedError("pull access denied for a"),
    ],
)
def test_what_would_be_the_same_again_fails_at_once(
    pulls: Pulls, registry: Registry, refusal: Exception
) -> None:
    registry.answers.append(refusal)
    pulls.want({"a"}, 0.0)
    assert refused(pulls).startswith(f"image a could not be pulled: {refusal}; ")


def test_a_full_disk_is_the_nodes_fault(pulls: Pulls, registry: Registry) -> None:
    registry.answers.append(EngineRefusedError("write /x: no space left on device"))
    pulls.want({"a"}, 0.0)
    (pulled,) = ended(pulls)
    assert pulled.refused is not None
    assert pulled.refused.cause == "node"
    words = "the disk is full: write /x: no space left on device; "
    assert pulled.refused.text.startswith(f"image a could not be pulled, {words}")


def test_what_may_pass_is_tried_again_a_few_times(pulls: Pulls, registry: Registry) -> None:
    registry.answers += [REFUSED_503] * MOST_TRIES
    now_s, waits = 0.0, (2.5, 7.5)  # the middle of each of the backoff's spans
    for wait_s in waits:
        pulls.want({"a"}, now_s)
        assert ended(pulls, now_s) == []
        assert pulls.progress("a") == f"to be pulled again: {REFUSED_503}"
        tries = len(registry.asked)
        pulls.want({"a"}, now_s + wait_s - 0.1)
        assert len(registry.asked) == tries, "before its time"
        now_s += wait_s
    pulls.want({"a"}, now_s)
    sentence = f"image a could not be pulled: {REFUSED_503} ({MOST_TRIES} tries); "
    assert refused(pulls, now_s).startswith(sentence)
    assert len(registry.asked) == MOST_TRIES


def test_a_blip_is_survived(pulls: Pulls, registry: Registry) -> None:
    registry.answers.append(REFUSED_503)
    pulls.want({"a"}, 0.0)
    assert ended(pulls, 0.0) == []
    pulls.want({"a"}, 5.0)
    registry.stream().said.put(None)
    assert ended(pulls, 6.0) == [Pulled("a", took_s=6.0)]


def test_layers_are_tried_again_by_docker_not_here(pulls: Pulls, registry: Registry) -> None:
    pulls.want({"a"}, 0.0)
    stream = registry.stream()
    stream.say(layer())
    stream.said.put(EngineRefusedError("unexpected EOF"))
    assert refused(pulls).startswith("image a could not be pulled: unexpected EOF; ")


def test_an_engine_that_is_away_is_asked_again_a_little_later(
    pulls: Pulls, registry: Registry
) -> None:
    registry.answers += [EngineAwayError("gone")] * 2
    pulls.want({"a"}, 10.0)
    assert ended(pulls, 10.0) == []
    pulls.want({"a"}, 10.0 + AGAIN_S - 0.1)
    assert registry.asked == ["a"]
    pulls.want({"a"}, 10.0 + AGAIN_S)
    assert ended(pulls) == []
    assert registry.asked == ["a", "a"]


def test_a_pull_that_nobody_waits_for_ends_at_once(pulls: Pulls, registry: Registry) -> None:
    pulls.want({"a"}, 0.0)
    stream = registry.stream()
    stream.say(layer(), layer(1))
    pulls.want(set(), 1.0)
    assert stream.ended.is_set(), "though it says nothing more"
    assert ended(pulls) == []


def test_one_that_is_given_up_before_it_was_answered_ends_when_it_is(
    pulls: Pulls, registry: Registry
) -> None:
    registry.silent.set()
    pulls.want({"a"}, 0.0)
    first = registry.stream()
    pulls.want(set(), 1.0)
    registry.silent.clear()
    pulls.want({"a"}, 2.0)  # meanwhile somebody wants it again: a pull of its own
    second = registry.stream()
    registry.speak.set()
    assert first.ended.wait(DEADLINE_S)
    assert ended(pulls) == []
    second.said.put(None)
    assert ended(pulls, 5.0) == [Pulled("a", took_s=3.0)]


def test_two_minutes_without_progress_fail_though_docker_goes_on_talking(
    pulls: Pulls, registry: Registry
) -> None:
    pulls.want({"a"}, 0.0)
    stream = registry.stream()
    stream.say(layer(), layer(50))
    pulls.want({"a"}, 100.0)
    waiting = {"status": "Retrying in 1 second", "id": "l"}
    for now_s in count(101.0, 1.0):
        stream.say(layer(50), waiting)
        if now_s >= 100.0 + NO_PROGRESS_S:
            break
        pulls.want({"a"}, now_s)
        assert pulls.progress("a") == "pulling 25%"
    pulls.want({"a"}, 100.0 + NO_PROGRESS_S)
    pulls.want({"a"}, 100.0 + NO_PROGRESS_S)  # said once, and not begun again before it is
    assert stream.ended.is_set()
    sentence = "image a could not be pulled: nothing moved for 120 s, at 25%; "
    assert refused(pulls).startswith(sentence)
    assert registry.asked == ["a"]


def test_any_progress_begins_the_two_minutes_anew(pulls: Pulls, registry: Registry) -> None:
    pulls.want({"a"}, 0.0)
    stream = registry.stream()
    stream.say(layer())
    for step in range(1, 20):
        stream.say(layer(step))
        pulls.want({"a"}, step * (NO_PROGRESS_S - 1))
    assert not stream.ended.is_set()


def test_a_registry_that_never_answers_fails_by_the_same_rule(
    pulls: Pulls, registry: Registry
) -> None:
    registry.silent.set()
    pulls.want({"a"}, 0.0)
    registry.stream()
    pulls.want({"a"}, NO_PROGRESS_S)
    sentence = "image a could not be pulled: nothing moved for 120 s, before its first byte; "
    assert refused(pulls).startswith(sentence)


def test_the_two_minutes_hold_over_all_tries(pulls: Pulls, registry: Registry) -> None:
    registry.answers.append(REFUSED_503)
    pulls.want({"a"}, 0.0)
    assert ended(pulls, 60.0) == []
    pulls.want({"a"}, 70.0)
    registry.stream()
    pulls.want({"a"}, NO_PROGRESS_S)
    assert f"before its first byte, the last try said: {REFUSED_503}; " in refused(pulls)


def test_a_few_that_hang_keep_no_other_from_coming(pulls: Pulls, registry: Registry) -> None:
    hanging = {f"h{n}" for n in range(MOST_AT_ONCE - 1)}
    pulls.want(hanging, 0.0)
    for _ in hanging:
        registry.stream()
    pulls.want({*hanging, "z"}, 0.0)
    registry.stream().said.put(None)
    assert ended(pulls) == [Pulled("z")]


def test_who_waits_for_others_to_end_has_not_stalled(pulls: Pulls, registry: Registry) -> None:
    hanging = {f"h{n}" for n in range(MOST_AT_ONCE)}
    pulls.want(hanging, 0.0)
    streams = [registry.stream() for _ in hanging]
    pulls.want({*hanging, "z"}, 1.0)
    pulls.want({*hanging, "z"}, NO_PROGRESS_S - 1)
    assert pulls.progress("z") == "waiting for other images to be pulled"
    pulls.want({*hanging, "z"}, NO_PROGRESS_S + 1)  # z has waited for as long
    assert all(stream.ended.wait(DEADLINE_S) for stream in streams)
    registry.stream().said.put(None)
    found: dict[str, bool] = {}
    while len(found) < len(hanging) + 1:
        found.update((p.image, p.refused is None) for p in ended(pulls, NO_PROGRESS_S + 1))
    assert [image for image, is_here in found.items() if is_here] == ["z"]
