"""The monitor under a real supervisord."""

import math
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil

from shared.messages import HostLoad
from tests.fakes.supervised import ROOT, Supervised, read_json, supervised, until

NAME = "monitor@host"


def samples(worker: Supervised) -> int | None:
    path = worker.home / "lib" / "load.db"
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return None
    try:
        return int(database.execute("SELECT count(*) FROM samples").fetchone()[0]) or None
    except sqlite3.OperationalError:
        return None
    finally:
        database.close()


def test_it_measures_this_machine_and_keeps_samples() -> None:
    with supervised([NAME]) as worker:
        load = worker.next(HostLoad)
        assert load.inventory.cpu_count == psutil.cpu_count()
        assert load.inventory.memory_bytes == psutil.virtual_memory().total
        assert load.inventory.kernel == os.uname().release
        assert 0 < load.memory_pct < 100
        assert 0 <= load.cpu_pct <= 100
        assert 0 < load.disk_free_bytes <= load.disk_total_bytes
        assert (load.pressure_cpu_pct is not None) == Path("/proc/pressure/cpu").exists()
        assert len(load.cores_pct) == psutil.cpu_count()
        assert load.tasks_cpu_pct is not None
        assert load.tasks_memory_bytes is not None
        scored = worker.next(HostLoad, lambda load: load.inventory.cpu_score > 0)
        kept = read_json(worker.home / "lib" / "cpu_score.json")
        assert kept["score"] == scored.inventory.cpu_score
        following = worker.next(HostLoad)
        assert 0.5 < following.at_s - load.at_s < 10
        assert following.network_received_bytes >= load.network_received_bytes
        pid = worker.pids()[NAME]
        os.kill(pid, signal.SIGTERM)  # in order: what is pending is written
        worker.back(NAME, pid)
        assert until(lambda: samples(worker), "samples are on disk") >= 2


def test_a_threshold_of_the_owners_is_an_alert() -> None:
    with supervised([NAME], ALERT_DISK="0,0,0", ALERT_MEMORY="off", NODE_NAME="attic") as worker:
        load = worker.next(HostLoad, lambda load: bool(load.alerts))
        (alert,) = load.alerts
        assert (alert.rule, alert.subject, alert.threshold) == ("disk", "attic", 0.0)
        assert load.cleared == ()
        assert "alert disk" in worker.logs()


def test_a_broken_database_is_set_aside_and_the_beat_goes_on() -> None:
    def break_it(home: Path) -> None:
        (home / "lib").mkdir()
        (home / "lib" / "load.db").write_bytes(b"no database" * 100)

    with supervised([NAME], prepare=break_it) as worker:
        until(lambda: "set aside" in worker.logs() or None, "it is said")
        assert list((worker.home / "lib").glob("load.db.broken-*"))
        assert worker.next(HostLoad).alerts == ()


def test_a_newer_database_is_an_alert() -> None:
    def make_newer(home: Path) -> None:
        (home / "lib").mkdir()
        newer = sqlite3.connect(home / "lib" / "load.db")
        newer.execute("PRAGMA user_version = 7")
        newer.close()

    with supervised([NAME], prepare=make_newer) as worker:
        load = worker.next(HostLoad, lambda load: bool(load.alerts))
        assert (load.alerts[0].rule, load.alerts[0].value) == ("newer_database", 7.0)


def test_the_argument_must_be_host() -> None:
    for words, said in (([], "not nothing"), (["cpu"], "not cpu"), (["host", "x"], "host x")):
        ended = subprocess.run(
            [sys.executable, "-m", "procs.monitor", *words],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_sigterm_ends_the_sleep_between_two_beats() -> None:
    with supervised([NAME]) as worker:

        def ends_before_its_next_beat() -> bool | None:
            beat_s = worker.next(HostLoad).at_s
            pid = worker.pids()[NAME]
            death = os.pidfd_open(pid)
            os.kill(pid, signal.SIGTERM)
            select.select([death], [], [])
            died_s = time.monotonic()
            os.close(death)
            worker.back(NAME, pid)
            print(f"SIGTERM {beat_s:.3f}, dead {died_s:.3f}")
            return died_s < math.floor(beat_s) + 1 or None

        until(ends_before_its_next_beat, "one of a few tries is not held up by others", 12.0)
