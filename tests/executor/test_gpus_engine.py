"""GPUs on a real engine that believes it has some: exclusive, kept over kills, told when lost."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor import gpus
from procs.executor.engine import DockerEngine
from procs.executor.notes import GRANT
from procs.executor.quota import Grant
from procs.executor.sandbox import Place, container, container_name
from shared.files import remove_tree
from shared.messages import TaskPhase
from shared.taskdir import GIB, TaskKey
from tests.executor.test_gpus import RECORDING
from tests.fakes.executor_alone import task
from tests.fakes.gpu_node import GpuNode, HookedEngine, gpu
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

ASLEEP = ("sh", "-c", "echo up; sleep 300")
SMALL, LARGE = gpu("GPU-small", 24), gpu("GPU-large", 80)
LOST = gpu("GPU-lost", 80, lost="fell off the bus")


@pytest.fixture(scope="module")
def hooked(engine: PrivateEngine) -> Iterator[HookedEngine]:
    folder = Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp"))
    made = HookedEngine(folder / "e")
    try:
        made.start()
        made.take_image(engine)
        yield made
    finally:
        made.stop("--purge")
        remove_tree(folder)


@pytest.fixture
def node(hooked: HookedEngine) -> Iterator[GpuNode]:
    made = GpuNode(hooked.host)
    yield made
    made.stop()


def gpus_said(node: GpuNode) -> int:
    state = node.state()
    assert state is not None
    return state.capacity.gpus


def is_up(node: GpuNode, key: TaskKey) -> None:
    node.wait(lambda: b"up" in node.output(key), f"{key} up")


def kill(node: GpuNode) -> None:
    """Back when the next life has heard of two cards."""
    node.kill()
    killed_s = time.monotonic()

    def knows() -> bool:
        state = node.state()
        return state is not None and state.at_s > killed_s and state.capacity.gpus == 2

    node.wait(knows, "two cards again")


def asleep(node: GpuNode, name: str, count: int = 1, memory_gib: int = 0) -> TaskKey:
    spec = task(*ASLEEP, name=name, gpus=count, gpu_memory_bytes=memory_gib * GIB, cpus=0.1)
    return node.assign(spec)


def test_a_card_is_one_tasks_until_it_ends_also_over_a_kill(
    node: GpuNode, hooked: HookedEngine
) -> None:
    node.cards = {"gpu0": (SMALL, LOST), "gpu1": (LARGE,)}
    node.start()
    node.wait(lambda: node.state() and gpus_said(node) == 2, "two cards")
    small, large = asleep(node, "small"), asleep(node, "large", memory_gib=40)
    for key in (small, large):
        is_up(node, key)
    third = asleep(node, "third")
    beside = asleep(node, "beside", count=0)
    is_up(node, beside)  # who waits for a card keeps no other waiting
    assert "NVIDIA_VISIBLE_DEVICES=void" in node.inspect(beside)["Config"]["Env"]
    assert node.inspect(beside)["HostConfig"]["DeviceRequests"] in (None, [])
    assert node.wait_phase(third, "accepted").phase is TaskPhase.ACCEPTED
    kill(node)
    after = asleep(node, "after", count=0)
    is_up(node, after)
    assert node.wait_phase(third, "accepted").phase is TaskPhase.ACCEPTED
    node.cancel(small)
    report = node.wait_report(small)
    assert report.gpu_uuids == ("GPU-small",)
    is_up(node, third)
    for key, uuid in ((third, "GPU-small"), (large, "GPU-large")):
        node.cancel(key)
        assert node.wait_report(key).gpu_uuids == (uuid,)
    assert hooked.visible() == ["GPU-large", "GPU-small", "GPU-small"]


def test_while_nobody_knows_which_card_a_task_has_none_is_given(node: GpuNode) -> None:
    node.cards = {"gpu0": (SMALL, LARGE)}
    node.start()
    first = asleep(node, "first")
    is_up(node, first)
    (node.directory(first) / GRANT).write_text("not JSON")
    kill(node)
    waits = asleep(node, "waits")
    is_up(node, asleep(node, "beside", count=0))
    assert node.wait_phase(waits, "accepted").phase is TaskPhase.ACCEPTED
    node.cancel(first)
    report = node.wait_report(first)
    assert (report.phase, report.gpu_uuids) == ("cancelled", ())
    is_up(node, waits)


def test_while_a_monitor_is_silent_its_cards_stay_known_and_are_not_given(node: GpuNode) -> None:
    node.cards, node.speak = {"gpu0": (SMALL,)}, False
    node.start()
    waits = asleep(node, "waits")
    is_up(node, asleep(node, "plain", count=0))
    assert node.wait_phase(waits, "accepted").phase is TaskPhase.ACCEPTED
    node.speak = True
    is_up(node, waits)
    node.fall_silent("gpu0")
    is_up(node, asleep(node, "more", count=0))
    assert gpus_said(node) == 1
    held = node.held(waits)
    assert held is not None
    assert held.phase is TaskPhase.RUNNING


def test_a_card_that_is_lost_under_a_task_is_told_and_is_no_end(node: GpuNode) -> None:
    node.cards = {"gpu0": (SMALL, LARGE)}
    node.start()
    key = asleep(node, "loses", count=2)
    is_up(node, key)
    node.cards["gpu0"] = (gpu("GPU-small", 24, lost="XID 79"), LARGE)

    def detail() -> str:
        held = node.held(key)
        assert held is not None
        assert held.phase is TaskPhase.RUNNING
        return held.detail

    node.wait(lambda: detail() == "GPU GPU-small is lost: XID 79", "the loss is told")
    assert gpus_said(node) == 1
    node.cards["gpu0"] = (SMALL, LARGE)
    node.wait(lambda: detail() == "", "it is back")
    node.cancel(key)
    report = node.wait_report(key)
    assert (report.gpu_uuids, report.gpu_pct_average) == (("GPU-small", "GPU-large"), 50.0)


def test_without_nvidias_toolkit_it_fails_with_what_to_do_and_takes_no_more(
    engine: PrivateEngine,
) -> None:
    assert engine.task_image
    node = GpuNode(engine.host)
    node.cards = {"gpu0": (SMALL,)}
    try:
        node.start()
        report = node.wait_report(asleep(node, "no-toolkit"))
        assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "node")
        assert "install the NVIDIA container toolkit" in report.error
        assert report.gpu_uuids == ()
        node.wait(lambda: gpus_said(node) == 0, "no card can be given")
    finally:
        node.stop()


def test_docker_takes_our_request_as_it_takes_its_own_command_lines(
    engine: PrivateEngine, tmp_path: Path
) -> None:
    recorded = RECORDING["calls"][0]["request"]["HostConfig"]["DeviceRequests"]
    docker = DockerEngine(engine.host)
    for folder in ("claim", "output", "input"):
        (tmp_path / folder).mkdir()
    place = Place(TaskKey("asked", 1), tmp_path, tmp_path, "n", Path("/bin/true"))
    granted = Grant(1.0, GIB, GIB, 8, gpus=tuple(recorded[0]["DeviceIDs"]))
    name = container_name(place.key, place.home)
    docker.create(name, container(place, docker.image(engine.task_image), granted, "runc"))
    node = GpuNode(engine.host)
    try:
        assert node.docker.inspect_container(name)["HostConfig"]["DeviceRequests"] == recorded
        assert gpus.requests(granted.gpus) == recorded
    finally:
        docker.remove(name)
        node.stop()
