"""The monitors of GPUs under a real supervisord; the driver's library is faked."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import GpuProcess
from tests.fakes.fake_nvml import ANY, ONE, TWO, FakeCard, FakeNvml
from tests.fakes.supervised import ROOT, Supervised, until
from tests.monitor.gpu_kit import card_of, is_lost, is_well, load_of, watched

FIRST, SECOND = "monitor@gpu0", "monitor@gpu1"


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path)


@pytest.fixture
def worker(nvml: FakeNvml) -> Iterator[Supervised]:
    with watched(nvml) as running:
        yield running


def test_a_set_tells_what_its_cards_do(nvml: FakeNvml) -> None:
    nvml.processes = [("GPU-2", 4711, 512), ("GPU-2", 4712, -1)]
    nvml.xids = [("GPU-2", 43)]
    nvml.say()
    with watched(nvml, (("GPU-2", "GPU-1"),)) as worker:
        load = load_of(worker, "gpu0", lambda load: load.gpus[0].xid == 43)
        assert [card.uuid for card in load.gpus] == ["GPU-2", "GPU-1"]
        card = load.gpus[0]
        assert (card.index, card.name, card.driver_version) == (1, "NVIDIA L4", "570.86.15")
        assert (card.util_pct, card.temperature_c, card.power_w) == (7.0, 41.0, 71.234)
        assert card.memory_total_bytes == TWO.total_mib * 2**20
        assert card.memory_used_bytes == TWO.used_mib * 2**20
        assert (card.clock_sm_mhz, card.clock_memory_mhz) == (1980, 2619)
        assert (card.ecc_corrected, card.ecc_uncorrected) == (3, 0)
        assert card.throttle_reasons == ()
        assert card.processes == (GpuProcess(pid=4711, memory_bytes=512 * 2**20),
                                  GpuProcess(pid=4712))  # fmt: skip
        assert card.reachable, "XID 43 is a program's fault"
        assert load.alerts == ()


def test_without_uuids_a_set_is_every_card(nvml: FakeNvml) -> None:
    with watched(nvml, ((),)) as worker:
        assert [card.uuid for card in load_of(worker, "gpu0").gpus] == ["GPU-1", "GPU-2"]
        nvml.cards = [ONE]
        nvml.say()
        lost = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[1])).gpus
        assert [(card.uuid, card.reachable) for card in lost] == [("GPU-1", True), ("GPU-2", False)]
        assert lost[1].reason == "it fell off the bus"


def test_a_card_that_is_lost_is_told_and_comes_back(nvml: FakeNvml, worker: Supervised) -> None:
    card_of(worker, "gpu0")
    nvml.break_(ANY, "GPU-1", 15)
    load = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]))
    (card,), (alert,) = load.gpus, load.alerts
    assert card.reason == "it fell off the bus"
    assert (card.name, card.index, card.util_pct, card.memory_used_bytes) == (
        "NVIDIA H100", 0, None, None,
    )  # fmt: skip
    assert card.memory_total_bytes == ONE.total_mib * 2**20, "what stays true is told"
    assert (alert.rule, alert.subject) == ("gpu_lost", "GPU-1")
    assert card_of(worker, "gpu1").reachable
    nvml.mend()
    assert card_of(worker, "gpu0", lambda c: "answers again" in c.reason).util_pct is None
    assert load_of(worker, "gpu0", lambda load: is_well(load.gpus[0])).alerts == ()


def test_a_figure_that_a_card_does_not_tell_is_none(nvml: FakeNvml, worker: Supervised) -> None:
    nvml.break_("nvmlDeviceGetPowerUsage", "GPU-1", 3)
    card = card_of(worker, "gpu0", lambda card: card.power_w is None)
    assert (card.reachable, card.util_pct, card.temperature_c) == (True, 7.0, 41.0)


def test_an_error_of_the_hardware_takes_the_card_out(nvml: FakeNvml, worker: Supervised) -> None:
    card_of(worker, "gpu0")
    nvml.xids = [("GPU-1", 48)]
    nvml.say()
    card = card_of(worker, "gpu0", is_lost)
    assert card.reason == "XID 48: reset it, then start its monitor anew"
    assert (card.xid, card.util_pct) == (48, 7.0)


def test_instances_of_a_split_card_are_told_as_such(nvml: FakeNvml) -> None:
    nvml.cards = [FakeCard("GPU-1", is_split=True)]
    instance = FakeCard("MIG-7", name="NVIDIA H100 MIG 1g.10gb", total_mib=9984)
    nvml.instances = [("GPU-1", instance)]
    nvml.say()
    with watched(nvml, (("GPU-1",),)) as worker:
        card, part = load_of(worker, "gpu0").gpus
        assert (card.is_split, card.is_whole, part.is_whole) == (True, False, False)
        assert (part.uuid, part.mig_of, part.name) == ("MIG-7", "GPU-1", instance.name)
        assert (part.memory_total_bytes, part.util_pct) == (9984 * 2**20, None)
        nvml.instances = []
        nvml.say()
        load_of(worker, "gpu0", lambda load: len(load.gpus) == 1)


def test_without_a_driver_it_says_so_and_takes_one_up_that_comes(nvml: FakeNvml) -> None:
    nvml.remove()
    with watched(nvml, (("GPU-1",),)) as worker:
        load = load_of(worker, "gpu0")
        assert load.reason == "there is no NVIDIA driver: libnvidia-ml.so.1 is not found"
        assert [(card.uuid, card.reason) for card in load.gpus] == [("GPU-1", load.reason)]
        pid = worker.pids()[FIRST]
        nvml.build()
        assert load_of(worker, "gpu0", lambda load: is_well(load.gpus[0])).reason == ""
        assert worker.pids()[FIRST] == pid


def test_a_driver_that_was_updated_is_said_until_both_halves_agree(
    nvml: FakeNvml, worker: Supervised
) -> None:
    """The library in memory is the old one: a new process has the new, which fits a new module."""
    card_of(worker, "gpu0")
    pids = worker.pids()
    nvml.break_(ANY, ANY, 18)  # the module is another than the library here
    why = "the driver was updated: its library and the kernel's module differ"
    assert load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0])).reason.startswith(why)
    assert worker.pids() == pids, "as long as the file is the same, a new process gets no further"
    nvml.build()
    worker.back(FIRST, pids[FIRST])
    worker.back(SECOND, pids[SECOND])
    nvml.mend()
    assert card_of(worker, "gpu0", is_well).reason == ""
    assert "the driver's library was replaced" in worker.logs()


def test_a_call_that_hangs_takes_out_its_card_alone(nvml: FakeNvml) -> None:
    with watched(nvml, (("GPU-1", "GPU-2"),)) as worker:
        load_of(worker, "gpu0")
        nvml.break_("nvmlDeviceGetTemperature", "GPU-1", "hang")
        load = load_of(worker, "gpu0", lambda load: is_lost(load.gpus[0]) and is_well(load.gpus[1]))
        assert "the driver has not answered for" in load.gpus[0].reason
        assert load.alerts[0].subject == "GPU-1"
        nvml.mend()
        load_of(worker, "gpu0", lambda load: all(map(is_well, load.gpus)))


def test_a_driver_that_hangs_at_all_stops_no_beat(nvml: FakeNvml) -> None:
    nvml.break_("nvmlInitWithFlags", ANY, "hang")
    with watched(nvml, (("GPU-1",),)) as worker:
        load = load_of(worker, "gpu0")
        assert "the driver has not answered for" in load.reason
        assert is_lost(load.gpus[0])
        following = load_of(worker, "gpu0")
        assert 0.5 < following.at_s - load.at_s < 10
        nvml.mend()
        assert load_of(worker, "gpu0", lambda load: is_well(load.gpus[0])).reason == ""


@pytest.mark.parametrize("fault", ["a crash in the driver", "kill -9"])
def test_the_death_of_one_monitor_is_no_others(
    nvml: FakeNvml, worker: Supervised, fault: str
) -> None:
    card_of(worker, "gpu0")
    card_of(worker, "gpu1")
    pids = worker.pids()
    if fault == "kill -9":
        os.kill(pids[SECOND], signal.SIGKILL)
        worker.back(SECOND, pids[SECOND])
    else:
        nvml.break_("nvmlDeviceGetMemoryInfo_v2", "GPU-2", "segv")
        worker.back(SECOND, pids[SECOND])
        nvml.mend()
    assert card_of(worker, "gpu1", is_well).uuid == "GPU-2"
    assert worker.pids()[FIRST] == pids[FIRST]


def test_sigterm_ends_it_though_a_call_hangs(nvml: FakeNvml, worker: Supervised) -> None:
    nvml.break_(ANY, "GPU-1", "hang")
    card_of(worker, "gpu0", is_lost)
    pid = worker.pids()[FIRST]
    death = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: select.select([death], [], [], 0)[0] or None, "it ends")
    os.close(death)
    nvml.mend()


# Python's own start of it, with a bound that is over sooner; start.sh's words come after.
HASTY = (
    f"{sys.executable} -c 'import sys; from procs.monitor import gpu; gpu.HUNG_END_S = 1.0;"
    " sys.exit(gpu.main(sys.argv[2:]))' procs.monitor"
)


@pytest.mark.parametrize("function", ["nvmlDeviceGetTemperature", "nvmlInitWithFlags"])
@pytest.mark.parametrize("fault", ["hang", "hang_d"])
def test_a_call_that_never_returns_ends_the_process_where_the_kernel_lets_it(
    nvml: FakeNvml, function: str, fault: str
) -> None:
    nvml.break_(function, ANY, fault)
    with watched(nvml, (("GPU-1",),), start=HASTY) as worker:
        if fault == "hang":
            pid = until(lambda: worker.pids().get(FIRST), "it is there")
            worker.back(FIRST, pid)
        else:
            card = card_of(worker, "gpu0", lambda card: "can't be ended" in card.reason)
            assert is_lost(card)
            pid = worker.pids()[FIRST]
            card_of(worker, "gpu0", is_lost)
            assert worker.pids()[FIRST] == pid
        nvml.mend()
        card_of(worker, "gpu0", is_well)


@pytest.mark.parametrize("words", [["gpux"], ["gpu0", "x"], ["gpu0", "0;1"], ["gpu0", "0", "1"]])
def test_a_wrong_argument_is_one_line_and_exit_2(words: list[str]) -> None:
    command = [sys.executable, "-m", "procs.monitor", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"monitor: must be gpuN [UUID,…], not {' '.join(words)}\n"
