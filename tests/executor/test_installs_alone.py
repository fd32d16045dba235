"""Installations where the engine does as the test says: what becomes of those who wait."""

import os
import select
import threading
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from procs.executor import layers as layers_module
from procs.executor.attempt import Attempt
from procs.executor.engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    Installing,
    NotThereError,
)
from procs.executor.install_box import PipSettings
from procs.executor.installs import PRUNE_S, Installed, Installs, Order, orders
from procs.executor.layers import Layers, layer_name
from procs.executor.networks import Networks, NetworkWaitError, Taken
from procs.executor.quota import Grant
from procs.executor.sandbox import Image
from shared import sentences
from shared.taskdir import LAYERS, MIB, SITE, Spec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to the task's user")

DEADLINE_S = 10.0
IMAGE = Image("sha256:1")
SMALL = Grant(0.5, 64 * MIB, 64 * MIB, 8)
LARGE = replace(SMALL, memory_bytes=128 * MIB)
NAME = layer_name(("tool",), IMAGE.digest)


class Engine(DockerEngine):
    """Makes and starts nothing: it answers with what the test says."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.at_create: Exception = EngineAwayError("away")
        self.at_start: Exception | None = None

    def create(self, name: str, body: dict[str, Any]) -> str:
        if self.at_start is None:
            raise self.at_create
        return "none"

    def start(self, container: str) -> None:
        assert self.at_start is not None
        raise self.at_start

    def remove(self, container: str) -> None:
        """It was never there."""

    def installing(self, home: str) -> list[Installing]:
        return []


class Bridges(Networks):
    """As many as are asked for; or none, for as long as the test says."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, "", "", 0)
        self.asked = threading.Event()
        self.are_none = False

    def take(self, owner: Hashable) -> Taken:
        self.asked.set()
        if self.are_none:
            raise NetworkWaitError("waiting for a network")
        return Taken("bridge", ("9.9.9.9",))

    def may_go(self, owner: Hashable, now_s: float) -> bool:
        return not self.are_none


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def bridges(engine: Engine) -> Bridges:
    return Bridges(engine)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


@pytest.fixture
def installs(
    engine: Engine, bridges: Bridges, layers: Layers, tmp_path: Path
) -> Iterator[Installs]:
    made = Installs(
        engine, layers, bridges, tmp_path, tmp_path / "keeper", "runc", PipSettings()
    )
    made.want({}, 0.0, engine_is_there=True)
    assert next_results(made, 0.0) == []  # the sweep
    yield made
    made.close()


def order(grant: Grant = SMALL, image: Image = IMAGE) -> dict[str, Order]:
    return {NAME: Order(NAME, ("tool",), image, "i:1", grant)}


def next_results(installs: Installs, now_s: float) -> list[Installed]:
    assert select.select([installs.fileno()], [], [], DEADLINE_S)[0], "nothing ended"
    return list(installs.results(now_s))


def test_an_image_that_was_removed_meanwhile_is_for_those_who_wait_to_miss(
    installs: Installs, engine: Engine
) -> None:
    engine.at_create = NotThereError("No such image: sha256:1")
    installs.want(order(), 1.0, engine_is_there=True)
    assert next_results(installs, 1.0) == [Installed(NAME)]


def test_a_container_or_network_that_is_gone_at_its_start_is_made_anew_a_few_times(
    installs: Installs, engine: Engine
) -> None:
    engine.at_start = NotThereError("network bridge not found")
    installs.want(order(), 1.0, engine_is_there=True)
    (installed,) = next_results(installs, 1.0)
    assert installed.refused is not None
    assert "on this node: their container ended without a word" in installed.refused.text


@pytest.mark.parametrize(
    ("image", "refusal", "said", "cause"),
    [
        pytest.param(
            replace(IMAGE, environment=("A=" + "x" * 200_000,)), None,
            "could not be installed: environment['A']: 200002 bytes", "dependencies", id="image",
        ),
        pytest.param(
            IMAGE, EngineRefusedError("no"), "could not be installed on this node: no", "node",
            id="engine",
        ),
    ],
)  # fmt: skip
def test_what_can_not_begin_is_said(
    installs: Installs, engine: Engine, image: Image, refusal: Exception, said: str, cause: str
) -> None:
    engine.at_create = refusal or engine.at_create
    installs.want(order(image=image), 1.0, engine_is_there=True)
    (installed,) = next_results(installs, 1.0)
    assert installed.refused is not None
    assert said in installed.refused.text
    assert installed.refused.cause == cause


def test_memory_of_one_who_waits_no_more_is_not_used(
    installs: Installs, bridges: Bridges
) -> None:
    bridges.are_none = True
    installs.want(order(LARGE), 1.0, engine_is_there=True)
    assert bridges.asked.wait(DEADLINE_S)
    installs.want(order(replace(LARGE, cpus=9.0)), 2.0, engine_is_there=True)
    assert not select.select([installs.fileno()], [], [], 0)[0]
    assert installs.progress(NAME) == "waiting for a network"
    installs.want(order(SMALL), 3.0, engine_is_there=True)
    assert next_results(installs, 3.0) == [Installed(NAME, away=True)], "begun anew, with less"


def test_those_who_may_have_more_ask_again() -> None:
    slow = sentences.REQUIREMENTS_TOO_SLOW.say(minutes="15", progress="")
    ended = Installed(NAME, slow, limited=SMALL)
    assert ended.fails(SMALL)
    assert not ended.fails(replace(SMALL, memory_bytes=10**9))
    assert not ended.fails(replace(SMALL, disk_bytes=10**9))
    assert not ended.fails(replace(SMALL, cpus=9.0))
    assert Installed(NAME, slow).fails(replace(SMALL, memory_bytes=10**9))


def test_it_has_the_limits_of_the_one_with_the_most_memory(tmp_path: Path) -> None:
    waiting = [
        Attempt(
            Spec(task_id=str(n), attempt=1, image="i:1", requirements=("Tool",)), tmp_path,
            grant=replace(grant, layer=NAME), image=IMAGE,
        )
        for n, grant in enumerate((SMALL, LARGE, SMALL))
    ]  # fmt: skip
    assert orders(waiting) == {NAME: Order(NAME, ("Tool",), IMAGE, "i:1", LARGE)}


def test_layers_past_their_size_go_though_nothing_is_installed_any_more(
    engine: Engine, layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that they have filled lets no task in for which more could be installed."""
    monkeypatch.setattr(layers_module, "MOST_BYTES", 1)
    build = layers.begin(NAME)
    (build / "site").mkdir()
    (build / "site" / "tool.py").write_bytes(b"A = 1\n")
    layers.finish(build, build / "site", ("tool",), IMAGE.digest)
    build.rmdir()
    place = tmp_path / LAYERS / NAME
    installs = Installs(engine, layers, None, tmp_path, tmp_path, "runc", PipSettings())
    installs.want({}, 0.0, engine_is_there=True)
    assert next_results(installs, 0.0) == []
    assert (place / SITE).is_dir(), "it was just made"
    os.utime(place / "layer.json", (1, 1))
    installs.want({}, PRUNE_S - 1, engine_is_there=True)
    assert not select.select([installs.fileno()], [], [], 0)[0]
    installs.want({}, PRUNE_S, engine_is_there=True)
    assert next_results(installs, PRUNE_S) == []
    assert not place.exists()
    installs.close()
