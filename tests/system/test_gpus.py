"""A whole worker with two sets of GPUs: configured as README says, one set's monitor killed.

The driver's library is faked, and so is the hook that gives a container its cards.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from shared.bus import Tap
from shared.files import remove_tree
from shared.messages import GpuLoad, HeldTask, Message, TaskPhase, TaskState
from tests.fakes.fake_nvml import ANY, FakeNvml
from tests.fakes.gpu_node import HookedEngine
from tests.system.engine.private import PrivateEngine
from tests.system.whole import PROGRAMS, SUPERVISORCTL, Master, Worker, until, whole

pytestmark = [pytest.mark.docker, pytest.mark.system]

ASLEEP = ("sh", "-c", "echo up; exec sleep 600")
M = TypeVar("M", bound=Message)
MONITORS = {"monitor@gpu0", "monitor@gpu1"}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hmg-", dir="/tmp"))
    yield made
    remove_tree(made)


@pytest.fixture
def hooked(engine: PrivateEngine, folder: Path) -> Iterator[HookedEngine]:
    made = HookedEngine(folder / "e")
    try:
        made.start()
        made.take_image(engine)
        yield made
    finally:
        made.stop("--purge")


def configure(worker: Worker, nvml: FakeNvml) -> None:
    """As README has it, for a worker that runs."""
    environment = {"PATH": os.environ["PATH"], **nvml.environment}
    for command in (
        (sys.executable, "-m", "procs.cli", "configure", "--gpu-sets", "0;1"),
        (*SUPERVISORCTL, "reload"),
    ):
        subprocess.run(command, cwd=worker.folder, env=environment, check=True)
    until(lambda: worker.pids().keys() == {*PROGRAMS, *MONITORS}, "the monitors run")


def said(worker: Worker, kind: type[M], source: str) -> M:
    """The next word of it."""
    with closing(Tap(worker.home, [str(kind.__struct_config__.tag)])) as tap:
        began_s = time.monotonic()

        def look() -> M | None:
            speaker, message = tap.next(0.1) or ("", None)
            if speaker != source or not isinstance(message, kind):
                return None
            return message if message.synced and message.at_s >= began_s else None

        found = until(look, f"{source} speaks")
        assert found is not None
        return found


def held(worker: Worker, task_id: str) -> HeldTask | None:
    tasks = said(worker, TaskState, "executor").tasks
    return next((task for task in tasks if task.task_id == task_id), None)


def is_lost(worker: Worker, gpu_set: str) -> bool:
    return not said(worker, GpuLoad, f"monitor@{gpu_set}").gpus[0].reachable


def cards_of(worker: Worker, task_id: str) -> tuple[str, ...]:
    task = held(worker, task_id)
    return task.gpus if task else ()


def test_one_sets_monitor_takes_only_its_own_cards_along(
    hooked: HookedEngine, folder: Path
) -> None:
    nvml = FakeNvml(folder)
    environment = nvml.environment
    with whole(hooked.host, hooked.task_image, **environment) as (worker, master):
        configure(worker, nvml)
        until(lambda: gpu_count(master) == 2, "the master knows of both cards")
        nvml.break_("nvmlInitWithFlags", ANY, "hang")  # who begins now gets no further
        before = worker.pids()
        os.kill(before["monitor@gpu1"], signal.SIGKILL)
        until(lambda: is_lost(worker, "gpu1"), "its card is lost")
        first = master.submit(*ASLEEP, gpus=1, cpus=0.1)
        until(lambda: cards_of(worker, first) == ("GPU-1",), "the first has the other set's card")
        second = master.submit(*ASLEEP, gpus=1, cpus=0.1)
        plain = master.submit("true", cpus=0.1)
        assert master.ended(plain)["state"] == "succeeded"
        waiting = held(worker, second)
        assert waiting is not None
        assert (waiting.phase, waiting.gpus) == (TaskPhase.ACCEPTED, ())
        nvml.mend()
        until(lambda: cards_of(worker, second) == ("GPU-2",), "its card is given again")
        until(lambda: sorted(hooked.visible()) == ["GPU-1", "GPU-2"], "each has its own")
        after = worker.pids()
        assert {name for name in after if after[name] != before[name]} == {"monitor@gpu1"}
        for task_id in (first, second):
            master.cancel(task_id)
            assert master.ended(task_id)["state"] == "cancelled"


def gpu_count(master: Master) -> int:
    return max((len(node["inventory"].get("gpus", [])) for node in master.nodes()), default=0)
