"""`supervisord -c supervisor.conf` as documented: no variable set, no var/, and no trace left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.topics import TOPICS
from tests.fakes.supervised import programs_of
from tests.system.whole import (
    PROGRAMS,
    ROOT,
    SUPERVISORCTL,
    SUPERVISORD,
    Worker,
    check_out,
    lives,
    short_folder,
    until,
)

pytestmark = pytest.mark.system

ENVIRONMENT = {"PATH": os.environ["PATH"]}
# The page's port is one for the whole machine: a network of its own, so that nobody has it.
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
START = str(ROOT / "procs" / "start.sh")
BAD_SETTING = "LOG_LEVEL=loud must be DEBUG or INFO or WARNING or ERROR"


@pytest.fixture
def checkout() -> Iterator[Path]:
    with short_folder() as folder:
        check_out(folder)
        yield folder
        if (pid_file := folder / ".supervisord.pid").exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def run(checkout: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def states(checkout: Path) -> dict[str, str]:
    """Program → supervisor's word."""
    lines = run(checkout, *SUPERVISORCTL, "status").splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def processes_in(folder: Path) -> list[str]:
    """Whose working directory it is, or lies below."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            inside = path.readlink().is_relative_to(folder)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if inside and lives(int(path.parent.name)):
            found.append((path.parent / "cmdline").read_bytes().decode())
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own takes root")
def test_supervisord_from_a_clean_checkout(checkout: Path) -> None:
    assert run(checkout, *OWN_NETWORK, *SUPERVISORD) == ""
    until((checkout / ".supervisord.pid").exists, "supervisord runs")
    pid = int((checkout / ".supervisord.pid").read_text())
    until(lambda: programs_of(pid).keys() == set(PROGRAMS), "every program runs")
    Worker(checkout).spoken(*PROGRAMS)
    assert states(checkout) == dict.fromkeys(PROGRAMS, "RUNNING")
    seen = run(checkout, sys.executable, "-m", "procs.tap", "--count", "20")
    assert len(seen.splitlines()) == 20
    assert {topic for topic in TOPICS if topic in seen} == TOPICS.keys() - {"gpu.load"}
    assert run(checkout, *SUPERVISORCTL, "shutdown") == "Shut down\n"
    until(lambda: processes_in(checkout) == [], "every process ends")
    assert not list(checkout.glob(".supervisor*.sock")) + list(checkout.glob(".supervisord.pid"))


def test_a_bad_setting_is_one_clear_line_and_exit_2(checkout: Path) -> None:
    worker = Worker(checkout, LOG_LEVEL="loud")
    worker.start()
    try:
        exited = dict.fromkeys(PROGRAMS, "EXITED")
        until((checkout / ".supervisor.sock").exists, "supervisord runs")
        until(lambda: states(checkout) == exited, "every program has ended for good")
        for name in PROGRAMS:
            (line,) = (worker.home / "log" / f"{name}.log").read_text().splitlines()
            assert line.endswith(f"{name} CRITICAL {BAD_SETTING}")
        log = (checkout / ".supervisord.log").read_text()
        assert log.count("exit status 2; expected") == len(PROGRAMS)
    finally:
        worker.stop()


def test_an_interpreter_that_can_not_be_run_is_tried_without_haste() -> None:
    with short_folder() as folder:
        broken = folder / "python"
        broken.write_bytes(b"\x7fELF is all it has")
        broken.chmod(0o755)
        # The script takes its parent's first word for the interpreter.
        parent = f"import subprocess; subprocess.run(['/bin/sh', {START!r}, 'vpn'])"
        began_s = time.monotonic()
        subprocess.run([str(broken), "-c", parent], executable=sys.executable, check=True)
        assert time.monotonic() - began_s >= 1.0
