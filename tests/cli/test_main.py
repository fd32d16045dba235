"""hivemind-worker as a process, with a real supervisord."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.cli.foreground import LogFollower
from tests.fakes.bus_worker import BusWorker, running_task, say_all, short_home

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as path:
        yield path
        for process in STARTED:
            process.kill()
            process.communicate()
        STARTED.clear()


STARTED: list[subprocess.Popen[bytes]] = []


def start(home: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "MASTER_NODE_URL"} | {
        "HIVEMIND_HOME": str(home),
        "DOCKER_HOST": f"unix://{home}/no-docker.sock",
        "WEB_LISTEN": "127.0.0.1:0",
        "VPN": "off",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "procs.cli", *arguments],
        cwd=ROOT,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out.decode(), err.decode()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """stderr up to where `text` has come."""
    assert process.stderr is not None
    seen, deadline_s = b"", time.monotonic() + DEADLINE_S
    while text not in seen and time.monotonic() < deadline_s:
        if select.select([process.stderr], [], [], 0.2)[0]:
            seen += os.read(process.stderr.fileno(), 65536)
    assert text in seen, seen
    return seen


def left_of(home: Path) -> list[str]:
    """The processes that have this home in their environment."""
    wanted, found = f"HIVEMIND_HOME={home}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_it_runs_everything_until_sigterm_and_leaves_nothing(home: Path) -> None:
    worker = start(home, "--debug", "--log-file", str(home / "all.log"))
    read_until(worker, b"spawned: 'web'")
    environment = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"-c\0{home}/run/supervisor.conf".encode() in path.with_name("cmdline").read_bytes()
    ]
    assert environment, "one, and for a moment each process that it forks"
    assert all(b"LOG_LEVEL=DEBUG" in one.split(b"\0") for one in environment)
    worker.send_signal(signal.SIGTERM)
    code, out, err = finish(worker)
    assert (code, out) == (0, "")
    assert "exit request" in err
    assert "exit request" in (home / "all.log").read_text()
    assert left_of(home) == []


def test_kill_9_leaves_nothing(home: Path) -> None:
    worker = start(home)
    read_until(worker, b"spawned: 'web'")
    worker.kill()
    worker.communicate()
    deadline_s = time.monotonic() + DEADLINE_S
    while left_of(home) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert left_of(home) == []


def test_a_second_worker_in_the_same_home_is_refused(home: Path) -> None:
    first = BusWorker(home)
    say_all(first)
    code, _, err = finish(start(home))
    first.close()
    assert code == 1
    assert f"a worker runs in {home} already" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        pytest.param(("--master-url", "ftp://x"), {}, "MASTER_NODE_URL=ftp://x must be", id="flag"),
        pytest.param((), {"VPN": "maybe"}, "VPN=maybe must be auto or off", id="environment"),
        pytest.param(("--config", "gone.conf"), {}, "there is no such file", id="no file"),
        pytest.param(("image", "build"), {"VPN": "maybe"}, "VPN=maybe must be", id="image build"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_2(
    home: Path, arguments: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    code, _, err = finish(start(home, *arguments, **variables))
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_bad_line_in_the_file_is_named(home: Path) -> None:
    path = home / "my.conf"
    path.write_text("NODE_NAME=attic\nNODE_NAM=x\n")
    code, _, err = finish(start(home, "--config", str(path)))
    assert code == 2
    assert f"{path}:2: there is no setting 'NODE_NAM'" in err


def test_status_reads_the_bus(home: Path) -> None:
    worker = BusWorker(home)
    status = start(home, "status", "--json")
    while status.poll() is None:
        say_all(worker, running_task())
        time.sleep(0.02)
    worker.close()
    code, out, err = finish(status)
    assert (code, err) == (0, "")
    read = json.loads(out)
    assert read["node"]["node_id"] == "node-7f3a"
    assert read["tasks"][0]["directory"] == "train.1"
    assert len(read["processes"]) == 6


def test_status_without_a_worker_is_exit_3(home: Path) -> None:
    code, out, err = finish(start(home, "status"))
    assert (code, out) == (3, "")
    assert err == f"hivemind-worker: no worker runs in {home}\n"


def test_logs_are_followed_through_a_rotation(tmp_path: Path) -> None:
    log, copy = tmp_path / "web.log", tmp_path / "copy"
    log.write_text("before\n")
    with copy.open("wb") as output:
        follower = LogFollower(tmp_path, [output])
        follower.copy()
        with log.open("a") as file:
            file.write("one\nhal")
        follower.copy()
        with log.open("a") as file:
            file.write("f\n")
        log.rename(tmp_path / "web.log.1")
        log.write_text("two\n")
        (tmp_path / "new.log").write_text("three\n")
        follower.copy()
        follower.close()
    assert copy.read_text().split() == ["one", "three", "half", "two"]
