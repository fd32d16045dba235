"""hivemind-tap as a process, on real sockets."""

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.bus_worker import BusWorker, say_all, short_home

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as path:
        yield path


@pytest.fixture
def worker(home: Path) -> Iterator[BusWorker]:
    made = BusWorker(home)
    yield made
    made.close()


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "procs.tap", "--home", str(home), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def beat_until_it_ends(worker: BusWorker, tap: subprocess.Popen[str]) -> tuple[str, str]:
    """Say everything again and again, until the tap has heard its count."""
    for _ in range(200):
        say_all(worker)
        try:
            return tap.communicate(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    tap.kill()
    raise AssertionError(f"the tap never ended: {tap.communicate()}")


def test_every_topic_passes_as_json(home: Path, worker: BusWorker) -> None:
    tap = start(home, "--json", "--count", "20")
    out, err = beat_until_it_ends(worker, tap)
    lines = [json.loads(line) for line in out.splitlines()]
    assert tap.returncode == 0, err
    assert len(lines) == 20
    assert {line["topic"] for line in lines} >= {
        "link.state", "task.state", "host.load", "vpn.state", "process.state",
    }  # fmt: skip


def test_only_the_topics_that_are_asked_for_pass(home: Path, worker: BusWorker) -> None:
    tap = start(home, "host", "--count", "2")
    out, _ = beat_until_it_ends(worker, tap)
    assert [line.split()[1] for line in out.splitlines()] == ["host.load"] * 2


def test_it_waits_for_a_worker_and_hears_one_that_comes_later(home: Path) -> None:
    tap = start(home, "--count", "1")
    assert tap.stderr is not None
    assert tap.stderr.readline() == f"no worker speaks in {home}; waiting for one\n"
    late = BusWorker(home)
    try:
        out, err = beat_until_it_ends(late, tap)
    finally:
        late.close()
    assert (tap.returncode, len(out.splitlines()), err) == (0, 1, "")


def test_a_message_that_is_none_is_passed_over(home: Path, worker: BusWorker) -> None:
    script = (
        "import sys, zmq\n"
        "s = zmq.Context().socket(zmq.XPUB)\n"
        f"s.bind('ipc://{home}/run/bus/stranger.sock')\n"
        "s.recv()\n"
        "s.send_multipart([b'task.want', b'stranger', b'junk'])\n"
        "s.send_multipart([b'two', b'parts'])\n"
        "print('sent', flush=True)\n"
        "sys.stdin.read()\n"
    )
    stranger = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tap = start(home, "--count", "3")
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "sent\n"
    out, err = beat_until_it_ends(worker, tap)
    stranger.communicate("")
    assert (tap.returncode, len(out.splitlines()), err) == (0, 3, "")


def test_control_c_ends_it_with_zero(home: Path, worker: BusWorker) -> None:
    tap = start(home)
    assert tap.stdout is not None
    for _ in range(200):
        say_all(worker)
        if select.select([tap.stdout], [], [], 0.1)[0]:
            break
    tap.send_signal(signal.SIGINT)
    _, err = tap.communicate(timeout=20)
    assert (tap.returncode, err) == (0, "")


def test_a_broken_pipe_is_no_traceback(home: Path, worker: BusWorker) -> None:
    tap = start(home)
    assert tap.stdout is not None
    assert tap.stderr is not None
    tap.stdout.close()
    for _ in range(200):
        say_all(worker)
        try:
            tap.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    err = tap.stderr.read()
    tap.stderr.close()
    assert (tap.returncode, err) == (0, "")


def test_a_slip_in_a_topic_is_said(home: Path) -> None:
    tap = start(home, "tsk.want")
    out, err = tap.communicate(timeout=20)
    assert (tap.returncode, out) == (2, "")
    assert "there is no topic 'tsk.want'; topics: task.want," in err
