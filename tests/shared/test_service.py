"""The first steps and the end of a process, under a real supervisord."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.service import CAPABILITIES, LONGEST_PACE_S, next_beat_in_s, pace_s
from tests.shared.polling import until

ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "fakes" / "beating.py"
PROGRAM = """
[program:{name}]
command = {python} {fake} {arguments}
startsecs = 0
autorestart = unexpected
exitcodes = 2
stopasgroup = true
killasgroup = true
stdout_logfile = NONE
stderr_logfile = %(here)s/{name}.err
"""
CONF = """
[supervisord]
pidfile = %(here)s/pid
logfile = %(here)s/supervisord.log
directory = {root}
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def supervised(home: Path) -> Iterator[Start]:
    """Starts a supervisord with the fake under the names given; kills it in the end."""
    with ExitStack() as stack:

        def start(
            *names: str, arguments: str = "", **variables: str
        ) -> "subprocess.Popen[bytes]":
            text = CONF.format(root=ROOT)
            for name in names:
                text += PROGRAM.format(
                    name=name, python=sys.executable, fake=FAKE, arguments=arguments
                )
            (home / "supervisor.conf").write_text(text)
            supervisord = Path(sys.executable).with_name("supervisord")
            process = subprocess.Popen(
                [sys.executable, supervisord, "-n", "-c", home / "supervisor.conf"],
                env=clean_environment(home) | variables,
                stdout=subprocess.DEVNULL,
                cwd=home,
            )
            stack.callback(end, process, home)
            return process

        yield start


def clean_environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HIVEMIND_HOME": str(home)}


def end(process: "subprocess.Popen[bytes]", home: Path) -> None:
    process.kill()  # its programs die with it
    process.wait()
    until(lambda: not any(alive(pid) for pid in pids(home)), "the programs are gone")


def story(home: Path) -> list[list[str]]:
    path = home / "story"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def pids(home: Path) -> list[int]:
    """Each life that came as far as its loop."""
    return [int(pid) for pid, what in story(home) if what == "begin"]


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def lives(home: Path, count: int) -> list[int]:
    return until(lambda: len(pids(home)) >= count and pids(home), f"{count} lives")


def logged(home: Path, text: str) -> int:
    path = home / "supervisord.log"
    return path.read_text().count(text) if path.exists() else 0


def test_wrong_settings_stay_down(home: Path, supervised: Start) -> None:
    supervised("executor", LOG_LEVEL="loud")
    until(lambda: logged(home, "exited: executor (exit status 2; expected)"), "exit 2")
    error = (home / "executor.err").read_text()
    line = "LOG_LEVEL=loud must be DEBUG or INFO or WARNING or ERROR"
    assert error == f"executor: {line}\n"
    assert f"CRITICAL {line}" in (home / "log" / "executor.log").read_text()
    assert pids(home) == []
    assert logged(home, "spawned:") == 1


def test_what_a_process_finds_wrong_late_keeps_it_down_too(
    home: Path, supervised: Start
) -> None:
    (home / "refuse").touch()
    supervised("executor")
    until(lambda: logged(home, "exited: executor (exit status 2; expected)"), "exit 2")
    assert (home / "executor.err").read_text() == "executor: a database is newer\n"
    assert "Traceback" not in (home / "log" / "executor.log").read_text()


def test_a_home_that_leaves_no_room_for_a_socket_keeps_it_down(
    home: Path, supervised: Start
) -> None:
    supervised("executor", HIVEMIND_HOME=str(home / ("x" * 100)))
    until(lambda: logged(home, "exited: executor (exit status 2; expected)"), "exit 2")
    assert "set HIVEMIND_HOME to a shorter path" in (home / "executor.err").read_text()


def test_a_failure_comes_back_and_says_why(home: Path, supervised: Start) -> None:
    (home / "fail").touch()
    supervised("executor")
    lives(home, 2)
    (home / "fail").unlink()
    until(lambda: [row for row in story(home) if "." in row[1]], "a beat")
    assert logged(home, "exited: executor (exit status 1; not expected)") >= 2
    log = (home / "log" / "executor.log").read_text()
    assert "executor ends" in log
    assert "RuntimeError: as the test asked" in log
    assert story(home)[1] == [str(pids(home)[0]), "close"]


def test_a_killed_process_comes_back(home: Path, supervised: Start) -> None:
    supervised("executor")
    (first,) = lives(home, 1)
    os.kill(first, signal.SIGKILL)
    assert lives(home, 2)[1] != first


def test_it_dies_with_supervisord(home: Path, supervised: Start) -> None:
    supervisord = supervised("executor")
    (pid,) = lives(home, 1)
    supervisord.send_signal(signal.SIGKILL)
    until(lambda: not alive(pid), "the program is gone")
    assert not any(what == "close" for _, what in story(home))


def test_sigterm_ends_it_in_order(home: Path, supervised: Start) -> None:
    supervised("executor")
    (pid,) = lives(home, 1)
    os.kill(pid, signal.SIGTERM)
    lives(home, 2)
    assert [str(pid), "close"] in story(home)
    assert logged(home, "exited: executor (exit status 0; not expected)") == 1


def test_a_second_instance_waits_for_the_lock(home: Path, supervised: Start) -> None:
    supervised("first", "second")
    (pid,) = lives(home, 1)
    until(lambda: logged(home, "spawned:") >= 2, "both are started")
    os.kill(pid, signal.SIGKILL)
    other = lives(home, 2)[1]
    assert other != pid
    assert alive(other)


def test_beats_fall_on_whole_seconds(home: Path, supervised: Start) -> None:
    supervised("executor")
    beats = until(
        lambda: (rows := [float(w) for _, w in story(home) if "." in w])[3:] and rows, "four beats"
    )
    assert [int(beat) for beat in beats[1:]] == list(range(int(beats[1]), int(beats[-1]) + 1))


def test_who_is_not_started_by_supervisord_is_refused(home: Path) -> None:
    ended = subprocess.run(
        [sys.executable, FAKE], env=clean_environment(home), capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "executor: not started by supervisord; use: supervisord -c supervisor.conf\n"
    )
    assert pids(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to drop")
@pytest.mark.parametrize("kept", [(), ("CHOWN", "KILL"), tuple(CAPABILITIES)], ids=str)
def test_capabilities_are_dropped(home: Path, supervised: Start, kept: tuple[str, ...]) -> None:
    supervised("executor", arguments=" ".join(kept))
    (pid,) = lives(home, 1)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sets = {line[:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}
    mask = sum(1 << CAPABILITIES[name] for name in kept)
    expected = {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}
    assert sets == expected
    assert "NoNewPrivs:\t1" in lines


def test_the_next_beat_is_on_the_whole_second() -> None:
    assert next_beat_in_s(12.25) == 0.75
    assert next_beat_in_s(12.0) == 1.0


@pytest.mark.parametrize(
    ("failures", "least_s", "most_s"),
    [(0, 0.0, 0.0), (1, 0.0, 0.0), (2, 0.75, 1.0), (4, 3.0, 4.0), (5, 6.0, 8.0), (99, 6.0, 8.0)],
)
def test_lives_after_failures_begin_later(failures: int, least_s: float, most_s: float) -> None:
    assert pace_s(failures, 0.0) == least_s
    assert least_s <= pace_s(failures, 0.999) <= most_s <= LONGEST_PACE_S
