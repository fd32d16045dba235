"""The monitors of GPUs under a real supervisord; the driver's library is faked."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shared.messages import GpuProcess, HostLoad
from tests.fakes.fake_nvml import ANY, ONE, TWO, FakeCard, FakeNvml
from tests.fakes.supervised import ROOT, Supervised, until
from tests.monitor.gpu_kit import card_of, is_lost, is_well, load_of, watched

HOST, FIRST, SECOND = "monitor@host", "monitor@gpu0", "monitor@gpu1"
# The process as start.sh becomes it, but with less patience.
HASTY = (
    f"{sys.executable} -c 'import sys; from procs.monitor import gpu, gpu_core, gpu_reader;"
    " gpu_core.STALE_S = gpu_reader.STALE_S = 1.5; gpu_core.RETURN_AFTER_S = 1.0;"
    " gpu_reader.REOPEN_S, gpu.HUNG_END_S = 1.0, {}; sys.exit(gpu.main(sys.argv[2:]))'"
    " procs.monitor"
)
ONE_SET = (("GPU-1",),)


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path)


@pytest.fixture(scope="module")
def shared_nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    made = FakeNvml(tmp_path_factory.mktemp("nvml"))
    made.processes = [("GPU-2", 4711, 512), ("GPU-2", 4712, -1)]
    made.xids = [("GPU-2", 43)]
    made.say()
    return made


@pytest.fixture(scope="module")
def running(shared_nvml: FakeNvml) -> Iterator[Supervised]:
    with watched(shared_nvml, programs=(HOST,)) as worker:
        yield worker


@pytest.fixture
def worker(running: Supervised, shared_nvml: FakeNvml) -> Iterator[Supervised]:
    """Two monitors that are well; they are again after the test."""
    yield running
    shared_nvml.mend()
    for gpu_set in ("gpu0", "gpu1"):
        card_of(running, gpu_set, is_well)


def test_a_set_tells_what_its_cards_do(worker: Supervised) -> None:
    load = load_of(worker, "gpu1", lambda load: load.gpus[0].xid == 43)
    (card,) = load.gpus
    assert (card.index, card.name, card.driver_version) == (1, "NVIDIA L4", "570.86.15")
    assert (card.util_pct, card.temperature_c, card.power_w) == (7.0, 41.0, 71.234)
    assert card.memory_total_bytes == TWO.total_mib * 2**20
    assert card.memory_used_bytes == TWO.used_mib * 2**20
    assert (card.clock_sm_mhz, card.clock_memory_mhz) == (1980, 2619)
    assert (card.ecc_corrected, card.ecc_uncorrected) == (3, 0)
    assert card.throttle_reasons == ()
    assert card.processes == (
        GpuProcess(pid=4711, memory_bytes=512 * 2**20), GpuProcess(pid=4712),
    )  # fmt: skip
    assert card.reachable, "XID 43 is a program's fault"
    assert load.alerts == ()


def test_its_samples_are_kept_with_the_machines(worker: Supervised) -> None:
    card_of(worker, "gpu0")
    for _ in range(2):
        worker.next(HostLoad)
    pid = worker.pids()[HOST]
    os.kill(pid, signal.SIGTERM)  # in order: what is pending is written
    worker.back(HOST, pid)
    query = "SELECT uuid, avg(power_w) FROM gpu_samples JOIN gpus ON number = gpu GROUP BY uuid"
    path = f"file:{worker.home}/lib/load.db?mode=ro"
    with closing(sqlite3.connect(path, uri=True)) as database:
        found = dict(database.execute(query))
    assert found == pytest.approx({"GPU-1": 71.234, "GPU-2": 71.234})


def test_a_card_that_is_lost_is_told_and_comes_back(
    shared_nvml: FakeNvml, worker: Supervised
) -> None:
    card_of(worker, "gpu0")
    shared_nvml.break_("nvmlDeviceGetPowerUsage", "GPU-1", 15)
    load = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]))
    (card,), (alert,) = load.gpus, load.alerts
    assert card.reason == "it fell off the bus"
    assert (card.name, card.index, card.util_pct, card.memory_used_bytes) == (
        "NVIDIA H100", 0, None, None,
    )  # fmt: skip
    assert card.memory_total_bytes == ONE.total_mib * 2**20, "what stays true is told"
    assert (alert.rule, alert.subject) == ("gpu_lost", "GPU-1")
    assert card_of(worker, "gpu1").reachable
    shared_nvml.mend()
    assert card_of(worker, "gpu0", lambda c: "answers again" in c.reason).util_pct is None
    assert load_of(worker, "gpu0", lambda load: is_well(load.gpus[0])).alerts == ()


def test_a_figure_that_a_card_does_not_tell_is_none(
    shared_nvml: FakeNvml, worker: Supervised
) -> None:
    shared_nvml.break_("nvmlDeviceGetPowerUsage", "GPU-1", 3)
    card = card_of(worker, "gpu0", lambda card: card.power_w is None)
    assert (card.reachable, card.util_pct, card.temperature_c) == (True, 7.0, 41.0)


def test_a_call_that_hangs_takes_out_its_set_alone_and_keeps_no_process_from_its_end(
    shared_nvml: FakeNvml, worker: Supervised
) -> None:
    shared_nvml.break_("nvmlDeviceGetTemperature", "GPU-1", "hang")
    load = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]))
    assert "the driver has not answered for" in load.gpus[0].reason
    assert load.alerts[0].subject == "GPU-1"
    assert card_of(worker, "gpu1").reachable
    pid = worker.pids()[FIRST]
    os.kill(pid, signal.SIGTERM)
    worker.back(FIRST, pid)


@pytest.mark.parametrize("fault", ["a crash in the driver", "kill -9"])
def test_the_death_of_one_monitor_is_no_others(
    shared_nvml: FakeNvml, worker: Supervised, fault: str
) -> None:
    card_of(worker, "gpu0")
    pids = worker.pids()
    if fault == "kill -9":
        os.kill(pids[SECOND], signal.SIGKILL)
    else:
        shared_nvml.break_("nvmlDeviceGetMemoryInfo_v2", "GPU-2", "segv")
    worker.back(SECOND, pids[SECOND])
    shared_nvml.mend()
    assert card_of(worker, "gpu1", is_well).uuid == "GPU-2"
    assert {name for name, pid in worker.pids().items() if pid != pids[name]} == {SECOND}


def test_one_set_of_all_cards_of_which_one_hangs_then_goes_then_comes_back(nvml: FakeNvml) -> None:
    with watched(nvml, ((),), HASTY.format(99.0)) as worker:
        assert [card.uuid for card in load_of(worker, "gpu0").gpus] == ["GPU-1", "GPU-2"]
        nvml.break_("nvmlDeviceGetTemperature", "GPU-1", "hang")
        load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]) and is_well(load.gpus[1]))
        nvml.mend()
        load_of(worker, "gpu0", lambda load: all(map(is_well, load.gpus)))
        nvml.cards = [ONE]
        nvml.say()
        gone = "the driver has 1 cards, not this one"
        cards = load_of(worker, "gpu0", lambda load: load.gpus[1].reason == gone).gpus
        assert [(card.uuid, card.reachable) for card in cards] == [
            ("GPU-1", True), ("GPU-2", False),
        ]  # fmt: skip
        nvml.cards = [ONE, TWO]
        nvml.say()
        load_of(worker, "gpu0", lambda load: all(map(is_well, load.gpus)))


def test_an_error_of_the_hardware_and_the_instances_of_a_split_card(nvml: FakeNvml) -> None:
    instance = FakeCard("MIG-7", name="NVIDIA H100 MIG 1g.10gb", total_mib=9984)
    nvml.cards, nvml.instances = [FakeCard("GPU-1", is_split=True), TWO], [("GPU-1", instance)]
    nvml.say()
    with watched(nvml) as worker:
        card, part = load_of(worker, "gpu0").gpus
        assert (card.is_split, card.is_whole, part.is_whole) == (True, False, False)
        assert (part.uuid, part.mig_of, part.name) == ("MIG-7", "GPU-1", instance.name)
        assert (part.memory_total_bytes, part.util_pct) == (9984 * 2**20, None)
        nvml.instances, nvml.xids = [], [("GPU-2", 48)]
        nvml.say()
        card = card_of(worker, "gpu1", is_lost)
        assert card.reason == "XID 48: stop its monitor, reset it, start the monitor"
        assert (card.xid, card.util_pct) == (48, 7.0)
        load_of(worker, "gpu0", lambda load: len(load.gpus) == 1)


def test_a_driver_that_is_not_there_then_comes_then_is_updated(nvml: FakeNvml) -> None:
    nvml.remove()
    with watched(nvml, ONE_SET, HASTY.format(99.0)) as worker:
        load = load_of(worker, "gpu0")
        assert load.reason == "there is no NVIDIA driver: libnvidia-ml.so.1 is not found"
        assert [(card.uuid, card.reason) for card in load.gpus] == [("GPU-1", load.reason)]
        pid = worker.pids()[FIRST]
        nvml.build()
        assert load_of(worker, "gpu0", lambda load: is_well(load.gpus[0])).reason == ""
        nvml.break_(ANY, ANY, 18)  # the kernel's module is another than the library here
        load = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]))
        why = "the driver was updated: its library and the kernel's module differ"
        assert load.reason.startswith(why)
        load_of(worker, "gpu0")
        assert worker.pids()[FIRST] == pid, "the file is the same: another gets no further"
        nvml.build()  # the library in memory is the old one now: a new process has the new
        worker.back(FIRST, pid)
        assert "the driver's library was replaced" in worker.logs()
        nvml.mend()
        assert card_of(worker, "gpu0", is_well).reason == ""


def test_a_call_that_never_returns_ends_a_process_that_can_end(nvml: FakeNvml) -> None:
    nvml.break_("nvmlInitWithFlags", ANY, "hang")
    with watched(nvml, ONE_SET, HASTY.format(2.0)) as worker:
        pid = until(lambda: worker.pids().get(FIRST), "it is there")
        worker.back(FIRST, pid)
        assert "this process ends, another begins" in worker.logs()
        nvml.mend()
        card_of(worker, "gpu0", is_well)


def test_one_that_the_kernel_does_not_let_go_stays_and_says_so(nvml: FakeNvml) -> None:
    nvml.break_("nvmlDeviceGetTemperature", ANY, "hang_d")
    with watched(nvml, ONE_SET, HASTY.format(2.0)) as worker:
        load = load_of(worker, "gpu0", lambda load: "can't be ended" in load.gpus[0].reason)
        pid = worker.pids()[FIRST]
        following = load_of(worker, "gpu0")
        assert is_lost(following.gpus[0])
        assert 0.5 < following.at_s - load.at_s < 10, "its beat goes on"
        assert worker.pids()[FIRST] == pid
        nvml.mend()
        card_of(worker, "gpu0", is_well)


@pytest.mark.parametrize("words", [["gpux"], ["gpu0", "x"], ["gpu0", "0;1"], ["gpu0", "0", "1"]])
def test_a_wrong_argument_is_one_line_and_exit_2(words: list[str]) -> None:
    command = [sys.executable, "-m", "procs.monitor", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"monitor: must be gpuN [UUID,…], not {' '.join(words)}\n"
