"""The watchdog under a real supervisord: deaths, hangs, restarts, and its own end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from procs.watchdog.core import ALERT_RESTARTS, SILENT_TICKS
from procs.watchdog.pids import born_s, since_s
from shared.messages import HostLoad, ProcessState, VpnState
from tests.fakes.supervised import ROOT, Supervised, read_json, supervised, until

PROGRAMS = ("monitor@host", "vpn", "watchdog")


def all_run(state: ProcessState) -> bool:
    return [p.name for p in state.processes if p.state == "RUNNING"] == list(PROGRAMS)


def restarts(state: ProcessState) -> dict[str, int]:
    return {process.name: process.restarts for process in state.processes}


def kill(worker: Supervised, name: str) -> float:
    """SIGKILL it when it has lived for over a second; seconds until another is there."""
    pid = worker.pids()[name]
    until(lambda: since_s(born_s(pid)) > 1.2 or None, f"{name} has lived a while")
    os.kill(pid, signal.SIGKILL)
    took_s = worker.back(name, pid)
    print(f"{name}: back after {took_s:.3f} s")
    return took_s


def test_kill_each_and_it_is_back_while_the_others_stay() -> None:
    with supervised(PROGRAMS) as worker:
        worker.next(ProcessState, all_run)
        for name in (*PROGRAMS, *PROGRAMS):
            others = {n: pid for n, pid in worker.pids().items() if n != name}
            took_s = kill(worker, name)
            assert {n: pid for n, pid in worker.pids().items() if n != name} == others
            assert took_s < 10
            worker.next(ProcessState, all_run)
        expected = dict.fromkeys(PROGRAMS, 2)
        state = worker.next(ProcessState, lambda state: restarts(state) == expected)
        assert {p.name: p.pid for p in state.processes} == worker.pids()
        assert state.alerts == ()
        record = read_json(worker.home / "lib" / "process.json")
        assert set(record["programs"]) == set(PROGRAMS)  # type: ignore[call-overload]


def test_a_hanging_process_is_killed_and_the_others_are_not() -> None:
    with supervised(PROGRAMS) as worker:
        worker.next(ProcessState, all_run)
        worker.next(VpnState)
        before = worker.pids()
        os.kill(before["vpn"], signal.SIGSTOP)
        began_s = time.monotonic()
        worker.back("vpn", before["vpn"])
        print(f"killed and back after {time.monotonic() - began_s:.1f} s of silence")
        assert f"no beat for {SILENT_TICKS} s" in worker.logs()
        worker.next(VpnState)
        state = worker.next(ProcessState, all_run)
        assert restarts(state) == {"monitor@host": 0, "vpn": 1, "watchdog": 0}


def test_a_watchdog_that_hangs_ends_itself() -> None:
    with supervised(PROGRAMS) as worker:
        worker.next(ProcessState, all_run)
        pid = worker.pids()["watchdog"]
        os.kill(pid, signal.SIGALRM)  # what its own alarm sends when nobody re-arms it
        worker.back("watchdog", pid)
        worker.next(ProcessState, all_run)


def test_a_stopped_supervisord_does_not_stop_the_beat() -> None:
    with supervised(PROGRAMS) as worker:
        worker.next(ProcessState, all_run)
        before = worker.pids()
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            first = worker.next(ProcessState, synced=False)
            worker.next(ProcessState, lambda state: state.at_s > first.at_s + 2, synced=False)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        worker.next(ProcessState, all_run)
        assert worker.pids() == before


def loops(configuration: str) -> str:
    return configuration + (
        "\n[program:crash]\ncommand = /bin/sh -c 'echo x >>crashes; exit 1'\nstartsecs = 0\n"
        "autorestart = true\nstdout_logfile = NONE\nstderr_logfile = NONE\n"
    )


def test_a_crash_loop_is_an_alert_and_does_not_spin() -> None:
    with supervised(["watchdog"], loops) as worker:
        began_s = time.monotonic()
        state = worker.next(ProcessState, lambda state: state.alerts == ("crash",))
        crashes = (worker.home / "crashes").read_text().count("x")
        lasted_s = time.monotonic() - began_s
        print(f"{crashes} lives in {lasted_s:.1f} s")
        assert restarts(state)["crash"] > ALERT_RESTARTS
        assert crashes < 4 * (lasted_s + 3)


def test_nothing_but_the_protocol_reaches_its_standard_output() -> None:
    """One stray line there would end its events: they still come after all that it logs."""
    with supervised(PROGRAMS, LOG_LEVEL="DEBUG") as worker:
        worker.next(ProcessState, all_run)
        until(lambda: (worker.home / ".supervisord.log").exists() or None, "supervisord's log")
        for _ in range(2):
            kill(worker, "vpn")
            worker.next(ProcessState, all_run)
        assert "bad result" not in (worker.home / ".supervisord.log").read_text().lower()
        assert "unknown state" not in (worker.home / ".supervisord.log").read_text().lower()


NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def nobody_can_run_it() -> bool:
    """The interpreter and this checkout may lie where only root may go."""
    if os.geteuid() != 0:
        return False
    code = "import shared.service, supervisor"
    command = (*AS_NOBODY, "/bin/sh", "-c", 'exec "$0" -c "$1"', sys.executable, code)
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not nobody_can_run_it(), reason="another user can't run this checkout")
def test_the_processes_run_as_another_user() -> None:
    def give_away(home: Path) -> None:
        os.chown(home, NOBODY, NOBODY)

    with supervised(PROGRAMS, launcher=AS_NOBODY, prepare=give_away) as worker:
        worker.next(ProcessState, all_run)
        worker.next(HostLoad)
        for pid in worker.pids().values():
            assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
        kill(worker, "vpn")
        worker.next(ProcessState, all_run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what is cut")
def test_root_keeps_only_what_its_row_says() -> None:
    with supervised(PROGRAMS) as worker:
        worker.next(ProcessState, all_run)
        worker.next(HostLoad)
        worker.next(VpnState)
        found = {}
        for name, pid in worker.pids().items():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found[name] = [line.split()[1] for line in lines if line.startswith(("CapE", "CapB"))]
        none, net_admin = f"{0:016x}", f"{1 << 12:016x}"
        assert found == {
            "monitor@host": [none, none], "vpn": [net_admin, net_admin], "watchdog": [none, none],
        }  # fmt: skip
