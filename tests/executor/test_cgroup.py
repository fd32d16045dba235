"""The kernel's view of a container, without the engine."""

import os
import select
import signal
from collections.abc import Iterator

import docker
import pytest

from procs.executor import cgroup
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
    use = cgroup.use(container)
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
    assert cgroup.use("0" * 64) is None


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
