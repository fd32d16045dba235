"""The keeper as PID 1 of real containers, walled in as a task's are, from an empty image."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from docker.models.containers import Container
from docker.types import Mount

from procs.executor.claim import Start, seal, settle, write_claim
from tests.executor.keeper_fixtures import attempt, hostile, keeper
from tests.executor.keeper_kit import GID, MIB, UID, Attempt, wait_until
from tests.system.engine.private import PrivateEngine

__all__ = ["attempt", "hostile", "keeper"]
pytestmark = pytest.mark.docker
WAIT_S = 60


@pytest.fixture(scope="module")
def client(engine: PrivateEngine) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=engine.host)
    yield client
    client.close()


@pytest.fixture(scope="module")
def scratch(client: docker.DockerClient, hostile: Path) -> Iterator[str]:
    """An image with one file in it: no shell, no library, no /etc."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(hostile, "hostile")
    client.api.import_image_from_data(content.getvalue(), repository="keeper-scratch", tag="1")
    yield "keeper-scratch:1"
    client.images.remove("keeper-scratch:1")


class Box:
    """A container on an attempt's claim."""

    def __init__(self, client: docker.DockerClient, image: str, attempt: Attempt) -> None:
        self._client, self._image, self._attempt = client, image, attempt
        self.containers: list[Container] = []

    def create(self, *argv: str, **options: Any) -> Container:
        start = Start(argv, {"SECRET": "very-secret"}, 64 * MIB, 64 * MIB)
        write_claim(self._attempt.directory, start, UID, GID)
        return self.create_on_claim(**options)

    def create_on_claim(self, **options: Any) -> Container:
        walls = {
            "user": f"{UID}:{GID}",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "read_only": True,
            "network_mode": "none",
            "mem_limit": "64m",
            "memswap_limit": "64m",
            "pids_limit": 33,
            "log_config": {"Type": "none"},
            "mounts": [
                Mount("/.hivemind", f"{self._attempt.directory}/claim", "bind"),
                Mount("/.keeper", str(self._attempt.keeper), "bind", read_only=True),
            ],
        }
        command = ["/.hivemind"]
        box = self._client.containers.create(
            self._image, command, entrypoint=["/.keeper"], **{**walls, **options}
        )
        self.containers.append(box)
        return box

    def run(self, *argv: str, **options: Any) -> int:
        box = self.create(*argv, **options)
        box.start()
        return int(box.wait(timeout=WAIT_S)["StatusCode"])


@pytest.fixture
def box(client: docker.DockerClient, scratch: str, attempt: Attempt) -> Iterator[Box]:
    box = Box(client, scratch, attempt)
    yield box
    for container in box.containers:
        container.remove(force=True)


def test_a_command_of_an_empty_image_has_log_end_and_figures(box: Box, attempt: Attempt) -> None:
    assert box.run("/hostile", "descriptors") == 0
    assert attempt.output() == b"0 1 2 leader\n"
    ended = attempt.record.ended
    assert ended is not None
    assert ended.memory_peak_bytes is not None
    assert 0 < ended.memory_peak_bytes < 64 * MIB
    assert ended.cpu_ns is not None
    assert ended.cpu_ns < 5_000_000_000
    assert ended.oom_kills == 0
    assert ended.block_read_bytes is not None
    assert ended.block_written_bytes is not None
    assert (ended.network_received_bytes, ended.network_sent_bytes) == (0, 0)


def test_what_it_wrote_and_sent_is_in_its_end(
    client: docker.DockerClient, engine: PrivateEngine, attempt: Attempt, tmp_path: Path
) -> None:
    code = (
        "import os, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.connect(('192.0.2.1', 9)); [s.send(bytes(1000)) for n in range(20)];"
        "f = open('/data/f', 'wb'); f.write(bytes(2**21)); f.flush(); os.fsync(f.fileno())"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    box = Box(client, engine.task_image, attempt)
    walls = {"network_mode": "bridge", "volumes": {str(tmp_path / "data"): {"bind": "/data"}}}
    try:
        assert box.run("python3", "-c", code, **walls) == 0
    finally:
        for container in box.containers:
            container.remove(force=True)
    ended = attempt.record.ended
    assert ended is not None
    assert (ended.network_sent_bytes or 0) >= 20 * 1000
    assert (ended.block_written_bytes or 0) >= 2**21


def test_a_hostile_command_does_its_keeper_no_harm(box: Box, attempt: Attempt) -> None:
    assert box.run("/hostile", "keeper") == 0
    assert attempt.output() == b"alive\n"


def test_a_forged_claim_does_not_run_when_the_container_is_started_again(
    box: Box, attempt: Attempt
) -> None:
    assert box.run("/hostile", "forge", "/.hivemind") == 0
    before = attempt.record
    box.containers[0].start()
    assert box.containers[0].wait(timeout=WAIT_S)["StatusCode"] == 125
    assert attempt.output() == b"forged\n"
    assert attempt.record == before


def test_a_sealed_claim_can_not_be_started_again(box: Box, attempt: Attempt) -> None:
    assert box.run("/hostile") == 0
    seal(attempt.directory)
    with pytest.raises(APIError, match=r"not exist|no such file"):
        box.containers[0].start()


def test_a_settled_start_never_runs(box: Box, attempt: Attempt) -> None:
    container = box.create("/hostile", "descriptors")
    assert settle(attempt.directory) is True
    container.start()
    assert container.wait(timeout=WAIT_S)["StatusCode"] == 125
    assert attempt.record.started is None
    assert attempt.output() == b""


def test_two_containers_on_one_claim_run_it_once(box: Box, attempt: Attempt) -> None:
    containers = [box.create("/hostile", "descriptors"), box.create_on_claim()]
    for container in containers:
        container.start()
    codes = sorted(container.wait(timeout=WAIT_S)["StatusCode"] for container in containers)
    assert codes == [0, 125]
    assert attempt.output() == b"0 1 2 leader\n"


def test_inspect_shows_nothing_of_the_command(box: Box) -> None:
    container = box.create("/hostile", "very-special")
    container.reload()
    shown = str(container.attrs)
    assert "very-secret" not in shown
    assert "very-special" not in shown


def test_with_room_for_one_process_the_command_fails_to_start(box: Box, attempt: Attempt) -> None:
    assert box.run("/hostile", pids_limit=1) in (126, 125)
    assert attempt.record.failed_errno == 11


def test_a_missing_command_is_told_apart(box: Box, attempt: Attempt) -> None:
    assert box.run("sh") == 127
    assert attempt.record.failed_errno == 2


def test_signals_and_the_hard_stop_come_through_docker(box: Box, attempt: Attempt) -> None:
    container = box.create("/hostile", "ignore")
    container.start()
    attempt.wait_for_output(b"ready\n")
    container.kill("TERM")
    container.kill("PWR")
    assert container.wait(timeout=WAIT_S)["StatusCode"] == 137
    ended = attempt.record.ended
    assert ended is not None
    assert (ended.code, ended.signal) == (137, 9)


def test_a_command_out_of_memory_is_counted_and_its_keeper_lives(
    box: Box, attempt: Attempt
) -> None:
    assert box.run("/hostile", "eat") == 137
    ended = attempt.record.ended
    assert ended is not None
    assert (ended.signal, ended.oom_kills) == (9, 1)


def test_the_log_is_whole_when_the_engine_dies_in_between(
    box: Box, attempt: Attempt, engine: PrivateEngine
) -> None:
    container = box.create("/hostile", "count")
    container.start()
    attempt.wait_for_output(b"1000\n")
    engine.kill()
    (attempt.directory / "claim" / "go").touch()
    try:
        wait_until(lambda: attempt.record.ended is not None)
    finally:
        engine.start()
    expected = "".join(f"{number}\n" for number in range(20_000))
    assert attempt.output() == expected.encode()
