"""`hivemind-worker configure`, on a driver that is faked."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from procs.cli.gpus import Card, chosen, reload, render
from shared.gpu_sets import GpuSetsError, Sets
from tests.fakes.fake_nvml import ANY, FakeNvml

ROOT = Path(__file__).parents[2]
CARDS = [Card(0, "GPU-a", "H100"), Card(1, "GPU-b", "L4"), Card(2, "GPU-c", "L4")]


@pytest.mark.parametrize(
    ("text", "cards", "sets"),
    [
        pytest.param("", CARDS, (("GPU-a", "GPU-b", "GPU-c"),), id="all in one"),
        pytest.param("", [], (), id="no card"),
        pytest.param("none", CARDS, (), id="none wanted"),
        pytest.param("0,1;2", CARDS, (("GPU-a", "GPU-b"), ("GPU-c",)), id="indices"),
        pytest.param("GPU-c;0", CARDS, (("GPU-c",), ("GPU-a",)), id="a UUID, one left out"),
    ],
)
def test_sets_are_chosen_by_uuid(text: str, cards: list[Card], sets: Sets) -> None:
    assert chosen(text, cards) == sets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("3", "names GPU 3, which is not there; there is 0, 1, 2", id="no such"),
        pytest.param("0;GPU-a", "by its index and by its UUID", id="twice, in two ways"),
        pytest.param("all", "must be indices", id="a word"),
    ],
)
def test_a_card_that_is_not_there_is_refused(text: str, said: str) -> None:
    with pytest.raises(GpuSetsError, match=said):
        chosen(text, CARDS)


def program(conf: configparser.RawConfigParser, name: str) -> dict[str, str]:
    return dict(conf[f"program:{name}"])


def test_a_monitor_of_gpus_is_a_program_like_the_hosts() -> None:
    """But for what it is called with, and where `here` is."""
    ours, theirs = configparser.RawConfigParser(), configparser.RawConfigParser()
    ours.read_string(render((("GPU-a", "GPU-b"), ("GPU-c",)), Path("/opt/a b%")))
    theirs.read(ROOT / "supervisor.conf")
    assert ours.sections() == ["program:monitor@gpu0", "program:monitor@gpu1"]
    start = "/bin/sh '/opt/a b%%/procs/start.sh' monitor"
    first, second = program(ours, "monitor@gpu0"), program(ours, "monitor@gpu1")
    assert first["command"] == f"{start} gpu0 GPU-a,GPU-b"
    assert second["command"] == f"{start} gpu1 GPU-c"
    own = {"command": first["command"], "directory": "/opt/a b%%"}
    assert first == program(theirs, "monitor@host") | own


class Configured:
    """A home, and a driver that is faked."""

    def __init__(self, folder: Path) -> None:
        self.nvml = FakeNvml(folder)
        self.home = folder / "home"

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HIVEMIND_HOME": str(self.home)}
        return subprocess.run(
            [sys.executable, "-m", "procs.cli", "configure", *arguments],
            cwd=ROOT, env={**environment, **self.nvml.environment, **variables},
            capture_output=True, text=True,
        )  # fmt: skip

    def commands(self) -> list[str]:
        """What each monitor is called with."""
        conf = configparser.RawConfigParser()
        conf.read(self.home / "conf.d" / "gpus.conf")
        return [conf[name]["command"].partition("start.sh ")[2] for name in conf.sections()]


@pytest.fixture
def machine(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_it_writes_a_monitor_for_each_set(machine: Configured) -> None:
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.commands() == ["monitor gpu0 GPU-1,GPU-2"]
    assert "monitor@gpu0: 0 NVIDIA H100 (GPU-1), 1 NVIDIA L4 (GPU-2)\n" in done.stdout
    own = machine.home / "run" / "supervisor.conf"
    assert done.stdout.endswith(f"after: supervisorctl -c {own} reload\n")
    assert "reload" not in machine.run().stdout, "nothing has changed"
    machine.run(GPU_SETS="1;0")
    assert machine.commands() == ["monitor gpu0 GPU-2", "monitor gpu1 GPU-1"]
    machine.run("--gpu-sets", "1", GPU_SETS="0")
    assert machine.commands() == ["monitor gpu0 GPU-2"]
    machine.run("--gpu-sets", "none")
    assert list((machine.home / "conf.d").iterdir()) == []


def test_a_worker_is_told_by_the_supervisor_conf_that_it_was_started_with(tmp_path: Path) -> None:
    home = tmp_path / "var"
    (home / "run").mkdir(parents=True)
    assert reload(home, tmp_path) == "supervisorctl -c supervisor.conf reload"
    assert reload(tmp_path / "x", tmp_path).endswith(f"{tmp_path}/x/run/supervisor.conf reload")
    (home / "run" / "supervisor.sock").touch()  # in the foreground
    assert reload(home, tmp_path) == f"supervisorctl -c {home}/run/supervisor.conf reload"


def test_a_machine_without_a_driver_has_no_monitor(machine: Configured) -> None:
    machine.nvml.remove()
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "no GPU, or no driver for it" in done.stdout
    assert not (machine.home / "conf.d").exists()


@pytest.mark.parametrize(
    ("function", "fault", "said"),
    [
        pytest.param("nvmlInitWithFlags", 18, "the driver was updated", id="mismatch"),
        pytest.param("nvmlDeviceGetCount_v2", 999, "NVML says: Unknown Error", id="no count"),
        pytest.param("nvmlDeviceGetUUID", "segv", "the driver ended it: -11", id="a crash"),
    ],
)
def test_a_driver_that_does_not_work_changes_nothing(
    machine: Configured, function: str, fault: str | int, said: str
) -> None:
    machine.run("--gpu-sets", "1")
    machine.nvml.break_(function, ANY, fault)
    done = machine.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert machine.commands() == ["monitor gpu0 GPU-2"]


def test_a_set_that_can_not_be_read_is_one_line_and_exit_2(machine: Configured) -> None:
    for words, said in (
        (("--gpu-sets", "9"), "GPU_SETS=9 names GPU 9"), (("--gpu-sets", "x"), "GPU_SETS=x must"),
    ):  # fmt: skip
        done = machine.run(*words)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
