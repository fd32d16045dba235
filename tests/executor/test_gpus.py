"""Which cards tasks get, and what Docker is asked for them: held to a recording."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.executor import install_box
from procs.executor.gpus import (
    BOUND_WITHIN_S,
    HEARD_WITHIN_S,
    NO_DRIVER,
    UNKNOWN,
    Card,
    Cards,
    best_fit,
    free_cards,
    requests,
)
from procs.executor.networks import NO_NETWORK
from procs.executor.quota import Grant
from procs.executor.sandbox import Image, Place, container
from shared.messages import GpuLoad, GpuSample
from shared.taskdir import GIB, TaskKey

RECORDING = json.loads((Path(__file__).parent / "data" / "gpus.json").read_text())
CREATE, START = RECORDING["calls"]
SMALL, LARGE = Card("GPU-s", 24 * GIB), Card("GPU-l", 80 * GIB)
LATER_S = 100.0


def sample(uuid: str, *, lost: str = "", util_pct: float | None = 50.0) -> GpuSample:
    return GpuSample(
        index=0, uuid=uuid, name="H", reachable=not lost, reason=lost, util_pct=util_pct,
        memory_total_bytes=GIB,
    )  # fmt: skip


def load(*gpus: GpuSample) -> GpuLoad:
    return GpuLoad(at_s=0.0, gpus=gpus)


def cards(**loads: GpuLoad) -> Cards:
    found = Cards(0.0)
    found.take(loads.keys(), loads, LATER_S)
    return found


def uuids(found: tuple[Card, ...]) -> list[str]:
    return [card.uuid for card in found]


# ------------------------------------------------------------------ what Docker is asked


def body(*gpus: str) -> dict[str, Any]:
    place = Place(TaskKey("t", 1), Path("/h/t.1"), Path("/h"), "n", Path("/h/keeper"))
    image = Image("sha256:1", ("/x",), environment=("NVIDIA_VISIBLE_DEVICES=all",))
    return container(place, image, Grant(1.0, GIB, GIB, 8, gpus=gpus), "runc")


def test_cards_are_asked_for_as_dockers_own_command_line_does() -> None:
    recorded = CREATE["request"]["HostConfig"]["DeviceRequests"]
    assert CREATE["call"].endswith("/containers/create")
    assert body(*recorded[0]["DeviceIDs"])["HostConfig"]["DeviceRequests"] == recorded


def test_what_installs_requirements_has_no_card() -> None:
    place = Place(TaskKey("t", 1), Path("/h/t.1"), Path("/h"), "n", Path("/h/keeper"))
    granted = Grant(1.0, GIB, GIB, 8, gpus=("GPU-1",))
    made = install_box.body(place, Image("sha256:1"), granted, "runc", "layer", NO_NETWORK)
    assert made["HostConfig"]["DeviceRequests"] == []
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["Env"]


def test_who_asks_for_none_asks_for_none() -> None:
    assert requests(()) == []
    assert body()["HostConfig"]["DeviceRequests"] == []


@pytest.mark.parametrize(
    ("gpus", "visible"),
    [
        pytest.param((), "void", id="none"),
        pytest.param(("GPU-1", "GPU-2"), "GPU-1,GPU-2", id="two"),
    ],
)
def test_no_image_widens_what_its_task_sees(gpus: tuple[str, ...], visible: str) -> None:
    """Docker puts an image's variable only where the container's own has none of that name."""
    found = dict(line.split("=", 1) for line in body(*gpus)["Env"])
    assert found["NVIDIA_VISIBLE_DEVICES"] == visible
    assert "enabled" not in found.values()
    assert found["NVIDIA_IMEX_CHANNELS"] == ""
    assert "display" not in found.get("NVIDIA_DRIVER_CAPABILITIES", "")
    assert "all" not in found.values()


def test_an_engine_without_nvidias_toolkit_is_known_by_its_words() -> None:
    assert START["status"] == 500
    assert NO_DRIVER in START["answer"]["message"]


# ------------------------------------------------------------------ which cards there are


def test_only_reachable_cards_are_healthy() -> None:
    found = cards(a=load(sample("1"), sample("2", lost="fell off the bus")), b=load(sample("3")))
    assert uuids(found.healthy()) == uuids(found.grantable()) == ["1", "3"]
    assert found.lost_count() == 1


def test_a_card_that_is_split_is_not_given_nor_are_its_instances() -> None:
    split = GpuSample(index=0, uuid="GPU-1", name="H", is_split=True)
    instance = GpuSample(index=0, uuid="MIG-1", name="H", mig_of="GPU-1")
    found = cards(a=load(split, instance, sample("2")))
    assert uuids(found.healthy()) == uuids(found.grantable()) == ["2"]


def test_a_card_that_one_of_two_monitors_calls_lost_is_lost() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        found = cards(**{first: load(sample("1", lost="gone")), second: load(sample("1"))})
        assert found.healthy() == ()


def test_a_silent_monitors_cards_stay_known_and_are_not_given() -> None:
    found = cards(a=load(sample("1")), b=load(sample("2")))
    found.take(("a", "b"), {"b": load(sample("2"))}, LATER_S)
    assert uuids(found.healthy()) == ["1", "2"]
    assert uuids(found.grantable()) == ["2"]
    found.take(("a", "b"), {"a": load(sample("1")), "b": load(sample("2"))}, LATER_S)
    assert uuids(found.grantable()) == ["1", "2"]


@pytest.mark.parametrize(
    ("monitors", "spoken", "now_s", "known"),
    [
        pytest.param((), (), 0.0, False, id="none yet"),
        pytest.param((), (), BOUND_WITHIN_S, True, id="there is none"),
        pytest.param(("a", "b"), ("a",), BOUND_WITHIN_S, False, id="one has not spoken"),
        pytest.param(("a", "b"), ("a", "b"), BOUND_WITHIN_S, True, id="both have"),
        pytest.param(("a", "b"), ("a",), HEARD_WITHIN_S, True, id="one is not run any more"),
    ],
)
def test_what_cards_there_are_is_known_when_all_have_spoken(
    monitors: tuple[str, ...], spoken: tuple[str, ...], now_s: float, known: bool
) -> None:
    found = Cards(0.0)
    found.take(monitors, {name: load(sample(name)) for name in spoken}, now_s)
    assert found.known is known


def test_where_docker_has_no_driver_there_is_no_card() -> None:
    found = cards(a=load(sample("1")))
    found.has_driver = False
    assert found.healthy() == found.grantable() == ()
    assert found.lost_count() == 0


def test_a_lost_card_is_told() -> None:
    found = cards(a=load(sample("1", lost="XID 79"), sample("2")))
    assert found.lost(("1", "2")) == "GPU 1 is lost: XID 79"
    assert found.lost(("2", "unheard of")) == ""


def test_use_is_the_mean_of_what_its_cards_say() -> None:
    mute, idle, busy = sample("1", util_pct=None), sample("2", util_pct=0.0), sample("3")
    found = cards(a=load(mute, idle, busy, sample("4", lost="x", util_pct=100.0)))
    assert found.use_pct(("2", "3")) == 25.0
    assert found.use_pct(("1", "3", "4")) == 50.0
    assert found.use_pct(("1",)) is None


# ------------------------------------------------------------------ which of them one gets


@pytest.mark.parametrize(
    ("count", "memory", "free", "given"),
    [
        pytest.param(1, 0, (LARGE, SMALL), ["GPU-s"], id="the large one is left"),
        pytest.param(1, 40 * GIB, (SMALL, LARGE), ["GPU-l"], id="only it has the memory"),
        pytest.param(2, 0, (LARGE, SMALL), ["GPU-s", "GPU-l"], id="both"),
        pytest.param(2, 40 * GIB, (SMALL, LARGE), ["GPU-l"], id="too few"),
        pytest.param(1, 81 * GIB, (SMALL, LARGE), [], id="none is large enough"),
        pytest.param(0, 0, (SMALL,), [], id="none asked for"),
    ],
)
def test_the_smallest_that_will_do(
    count: int, memory: int, free: tuple[Card, ...], given: list[str]
) -> None:
    assert uuids(best_fit(count, memory, free)) == given


CARDS = st.lists(
    st.builds(Card, st.uuids().map(str), st.integers(0, 9)), max_size=8, unique_by=lambda c: c.uuid
)


@given(st.integers(0, 4), st.integers(0, 9), CARDS)
def test_what_is_left_behind_is_never_better_suited(
    count: int, memory: int, free: list[Card]
) -> None:
    found = best_fit(count, memory, free)
    fitting = [card for card in free if card.memory_bytes >= memory]
    left = [card.memory_bytes for card in fitting if card not in found]
    assert set(found) <= set(fitting)
    assert len(found) == min(count, len(fitting)) == len(set(found))
    assert all(card.memory_bytes <= size for card in found for size in left)


def test_while_it_is_not_known_which_card_a_task_has_none_is_free() -> None:
    assert uuids(free_cards((SMALL, LARGE), ("GPU-s",))) == ["GPU-l"]
    assert free_cards((SMALL, LARGE), (UNKNOWN,)) == ()
