"""The kernel's view of a container, without the engine."""

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from procs.executor import cgroup
from procs.executor.quota import Grant
from procs.executor.use import as_use
from tests.system.engine.private import PrivateEngine


@pytest.fixture
def container(engine: PrivateEngine) -> Iterator[str]:
    """A container whose first process has a child."""
    client = docker.APIClient(base_url=engine.host, version="1.41")
    code = "trap 'exit 3' USR1; sleep 300 & while :; do wait; done"
    made = client.create_container(engine.task_image, ["sh", "-c", code], entrypoint=[])
    try:
        client.start(made["Id"])
        yield str(made["Id"])
    finally:
        client.remove_container(made["Id"], force=True)
        client.close()


def is_over(pids: list[int], count: int) -> None:
    """Wait until `count` of them have ended."""
    for pid in pids[:count]:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        signal_came = select.select([descriptor], [], [], 10.0)[0]
        os.close(descriptor)
        assert signal_came, f"{pid} lives"


@pytest.mark.docker
def test_its_processes_and_what_they_use_are_found(container: str) -> None:
    assert os.getpid() not in cgroup.processes(container)
    assert len(cgroup.processes(container)) >= 1
    group = cgroup.find(container)
    assert group is not None
    use = cgroup.use(group)
    assert use is not None
    assert use.cpu_ns > 0
    assert use.memory_bytes > 0


@pytest.mark.docker
def test_kill_leaves_none(container: str) -> None:
    pids = cgroup.processes(container)
    cgroup.kill(container)
    is_over(pids, len(pids))
    assert cgroup.processes(container) == []


@pytest.mark.docker
def test_only_the_first_process_is_signalled(container: str) -> None:
    pids = cgroup.processes(container)
    assert cgroup.signal_keeper(container, signal.SIGUSR1)
    is_over(pids, len(pids))  # the first exits at the signal, and takes the others with it


@pytest.mark.parametrize("container", ["", "0" * 64])
def test_none_is_found_where_there_is_none(container: str) -> None:
    assert cgroup.processes(container) == []
    assert not cgroup.signal_keeper(container, signal.SIGTERM)
    assert cgroup.find(container) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("term", signal.SIGTERM),
        ("2", 2),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMIN+x", signal.SIGTERM),
        ("999", signal.SIGTERM),
        ("0", signal.SIGTERM),
        ("nonsense", signal.SIGTERM),
    ],
)
def test_a_signal_by_its_name(name: str, number: int) -> None:
    assert cgroup.number(name) == number


ID = "5f" * 32
V2_FILES = {
    "cpu.stat": "usage_usec 2500\nuser_usec 1\nsystem_usec 2\nnr_periods 40\nnr_throttled 10\n"
    "throttled_usec 77\n",
    "memory.current": "4096\n",
    "io.stat": "254:0 rbytes=1000 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:0\n"
    "8:16 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=9 dios=9\n",
}
V1_FILES = {
    "cpu/cpu.stat": "nr_periods 40\nnr_throttled 10\nthrottled_time 77\n",
    "cpuacct/cpuacct.usage": "2500000\n",
    "memory/memory.usage_in_bytes": "4096\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "254:0 Read 1000\n254:0 Write 20\n"
    "254:0 Sync 3\n254:0 Total 1020\n8:16 Read 1\n8:16 Write 2\nTotal 1023\n",
}
USED = cgroup.Use(2_500_000, 4096, 40, 10, 1001, 22)


@pytest.mark.parametrize("is_v2", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(f"hivemind/{ID}", id="cgroupfs"),
        pytest.param(f"hivemind.slice/docker-{ID}.scope", id="systemd"),
        pytest.param(f"docker/{ID}", id="cgroupfs, before an upgrade"),
        pytest.param(f"system.slice/docker-{ID}.scope", id="systemd, before an upgrade"),
        pytest.param(f"owners/{ID}", id="the engine's own parent"),
        pytest.param(f"a.slice/a-b.slice/docker-{ID}.scope", id="the engine's own slice"),
    ],
)
def test_use_is_read_wherever_the_engine_puts_it(tmp_path: Path, place: str, is_v2: bool) -> None:
    for name, content in (V2_FILES if is_v2 else V1_FILES).items():
        folder, _, file = name.rpartition("/")
        (tmp_path / folder / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / place / file).write_text(content)
    if is_v2:
        (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    group = cgroup.find(ID, tmp_path)
    assert group is not None
    assert cgroup.use(group) == USED
    assert cgroup.find("e0" * 32, tmp_path) is None


def test_a_controller_that_is_off_says_nothing_and_a_group_that_went_neither(
    tmp_path: Path,
) -> None:
    place = tmp_path / "hivemind" / ID
    place.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").touch()
    (place / "cpu.stat").write_text("usage_usec 1\n")
    (place / "memory.current").write_text("2\n")
    group = cgroup.find(ID, tmp_path)
    assert group is not None
    assert cgroup.use(group) == cgroup.Use(1000, 2)
    (place / "cpu.stat").unlink()
    assert cgroup.use(group) is None


NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo: 9000      90    0    0    0     0          0         0     9000      90    0    0    0     0
  eth0: 1500      10    0    0    0     0          0         0      700       7    0    0    0     0
  eth1:12         1    0    0    0     0          0         0        3       1    0    0    0     0
"""


def test_network_is_what_went_out_of_the_namespace(tmp_path: Path) -> None:
    (tmp_path / "7" / "net").mkdir(parents=True)
    (tmp_path / "7" / "net" / "dev").write_text(NET_DEV)
    assert cgroup.network(7, tmp_path) == (1512, 703)
    assert cgroup.network(8, tmp_path) == (0, 0)


@pytest.mark.parametrize(
    ("before", "cpu_pct", "throttled_pct"),
    [
        pytest.param(None, 0.0, 0.0, id="the first reading"),
        pytest.param(cgroup.Use(2 * 10**9, 0, 10, 5), 100.0, 75.0, id="the next one"),
        pytest.param(cgroup.Use(2 * 10**9, 0, 30, 20), 100.0, 0.0, id="no period has ended"),
    ],
)
def test_use_is_what_was_used_since_the_last_reading(
    before: cgroup.Use | None, cpu_pct: float, throttled_pct: float
) -> None:
    now = cgroup.Use(25 * 10**8, 7, 30, 20, 1, 2)
    use = as_use(before, now, Grant(0.5, 100, 1000, 8), (3, 4), 5)
    assert (use.cpu_pct, use.cpu_throttled_pct) == (cpu_pct, throttled_pct)
    assert (use.memory_bytes, use.memory_limit_bytes) == (7, 100)
    assert (use.block_read_bytes, use.block_written_bytes) == (1, 2)
    assert (use.network_received_bytes, use.network_sent_bytes) == (3, 4)
    assert (use.disk_bytes, use.disk_limit_bytes) == (5, 1000)
