"""A hostile command, a full disk, two starts: what must hold whatever happens."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.claim import AlreadyRanError, seal, settle
from shared.tasklog import STDERR
from tests.executor.keeper_fixtures import attempt, hostile, keeper
from tests.executor.keeper_kit import CLAIM, HOSTILE, TMP, WAIT_S, Attempt, wait_until

__all__ = ["attempt", "hostile", "keeper"]
RACES = 30
ESCAPED = """
import os
os.chroot("/mnt")  # the working directory stays outside, as a leak of the runtime's would have it
os.execv("/keeper", ["keeper", "/claim"])
"""


def test_a_command_can_neither_trace_nor_open_nor_kill_its_keeper(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "keeper"])
    assert attempt.run() == 0
    assert attempt.output() == b"alive\n"
    assert attempt.record.ended is not None


def test_a_command_finds_no_file_of_the_claim(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "files", CLAIM])
    assert attempt.run() == 0
    assert attempt.output() == b"looked\n"


def test_a_32_bit_call_does_not_slip_past_the_filter(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "32"])
    assert attempt.run() == 128 + signal.SIGSYS
    assert attempt.output() == b""


def test_no_disk_is_set_aside_faster_than_it_is_looked_at(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", f"fallocate -l 4096 {TMP}/x; fallocate -n -l 4096 {TMP}/x"])
    assert attempt.run() == 1
    assert attempt.output(STDERR).count(b"fallocate: ") == 2


def test_a_working_directory_outside_the_container_is_refused(attempt: Attempt) -> None:
    attempt.claim(["true"])
    process = attempt.start_as("python3", "-c", ESCAPED)
    assert b"working directory" in process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 125
    assert attempt.record.started is None


def test_the_secrets_are_gone_from_the_disk_once_claimed(attempt: Attempt) -> None:
    attempt.claim(["true"], {"TOKEN": "very-secret"})
    assert b"very-secret" in (attempt.directory / "claim" / "start").read_bytes()
    attempt.run()
    files = [path for path in attempt.directory.rglob("*") if path.is_file()]
    assert not any(b"very-secret" in path.read_bytes() for path in files)


def test_a_second_start_on_the_same_claim_runs_nothing(attempt: Attempt) -> None:
    attempt.claim(["echo", "once"])
    assert attempt.run() == 0
    before = attempt.record
    assert attempt.run() == 125
    assert attempt.output() == b"once\n"
    assert attempt.record == before


def test_a_forged_claim_is_neither_run_nor_settled(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "forge", CLAIM])
    assert attempt.run() == 0
    assert attempt.output() == b"forged\n"
    before = attempt.record
    assert attempt.run() == 125
    assert attempt.record == before
    assert settle(attempt.directory) is False
    with pytest.raises(AlreadyRanError):
        attempt.claim(["true"])


def test_a_sealed_claim_takes_nothing_from_the_command(attempt: Attempt) -> None:
    script = f"while [ -d {CLAIM} ] && touch {CLAIM}/x; do :; done 2>/dev/null; echo sealed"
    attempt.claim(["sh", "-c", f"cd {CLAIM}; {script}"])
    process = attempt.start()
    attempt.keeper_pid(process)
    seal(attempt.directory)
    process.communicate(timeout=60)
    assert attempt.output() == b"sealed\n"
    assert not (attempt.directory / "claim").exists()


def test_limits_put_on_the_keeper_harm_only_its_own_task(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "prlimit --pid 1 --fsize=1 && echo lost; sleep 0.2; exit 4"])
    assert attempt.run() == 4
    record = attempt.record
    assert record.started is not None
    assert record.ended is None
    assert attempt.output() == b""


def test_a_start_that_cannot_be_recorded_is_not_made(attempt: Attempt) -> None:
    attempt.claim(["echo", "ran"])
    assert attempt.run("prlimit", "--fsize=0") == 125
    assert (attempt.directory / "run").read_bytes() == b""
    assert attempt.output() == b""


@pytest.mark.parametrize("content", [b"", b"x", b"hivemind-start 1\0" + b"1\0" * 3])
def test_a_malformed_start_is_refused_before_the_claim(attempt: Attempt, content: bytes) -> None:
    attempt.claim(["echo", "ran"])
    (attempt.directory / "claim" / "start").write_bytes(content)
    assert attempt.run() == 125
    assert settle(attempt.directory) is True


def test_of_two_keepers_on_one_claim_one_runs(attempt: Attempt) -> None:
    for _ in range(RACES // 2):
        attempt.claim(["echo", "ran"])
        pair = [attempt.start(), attempt.start()]
        for process in pair:
            process.communicate(timeout=60)
        assert sorted(process.returncode for process in pair) == [0, 125]
        assert attempt.output() == b"ran\n"
        attempt.forget()


def test_the_host_and_a_keeper_race_for_a_start_and_one_wins(attempt: Attempt) -> None:
    attempt.claim(["echo", "ran"])
    begun_s = time.monotonic()
    attempt.run()
    whole_s = time.monotonic() - begun_s  # the races are spread over what one start takes
    for turn in range(RACES):
        attempt.forget()
        attempt.claim(["echo", "ran"])
        at_s = time.monotonic() + whole_s * turn / RACES
        process = attempt.start()
        while time.monotonic() < at_s:
            pass  # the race is for the moment, not for an event
        never_ran = settle(attempt.directory)
        process.communicate(timeout=60)
        assert process.returncode == (125 if never_ran else 0)
        assert attempt.output() == (b"" if never_ran else b"ran\n")
        assert (attempt.record.started is None) == never_ran


@pytest.fixture
def full_disk(keeper: Path, hostile: Path, tmp_path: Path) -> Iterator[Attempt]:
    """An attempt on a disk of 1 MiB, for fill() to fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    (disk / "task").mkdir()
    attempt = Attempt(keeper, hostile, disk / "task")
    yield attempt
    attempt.close()
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, but_pages: int) -> None:
    """Leave `but_pages` of 4 KiB free."""
    status = os.statvfs(disk)
    size = (status.f_bavail * status.f_frsize // 4096 - but_pages) * 4096
    (disk / "filler").write_bytes(bytes(size))


@pytest.mark.parametrize("pages", range(6))
def test_a_full_disk_loses_output_but_not_the_end(full_disk: Attempt, pages: int) -> None:
    attempt = full_disk
    attempt.claim(["sh", "-c", "seq 20000; exit 3"])
    fill(attempt.directory.parent, pages)
    assert attempt.run() == 3
    ended = attempt.record.ended
    assert ended is not None
    written = "".join(f"{number}\n" for number in range(1, 20_001)).encode()
    assert len(attempt.output()) + ended.log_lost_bytes == len(written)
    assert ended.log_lost_bytes > 0
    records = attempt.log
    assert [record.sequence for record in records] == list(range(len(records)))


def test_output_goes_on_when_the_disk_has_room_again(full_disk: Attempt) -> None:
    told = full_disk.directory / "claim" / "told"
    script = f"trap 'echo room; exit 3' TERM; seq 100000; rm {CLAIM}/told; while :; do :; done"
    full_disk.claim(["sh", "-c", script])
    told.touch()
    fill(full_disk.directory.parent, 8)
    process = full_disk.start()
    pid = full_disk.keeper_pid(process)
    wait_until(lambda: not told.exists())  # more than a pipe was written: some of it is lost
    (full_disk.directory.parent / "filler").unlink()
    os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert full_disk.output().endswith(b"room\n")
    ended = full_disk.record.ended
    assert ended is not None
    assert ended.log_lost_bytes > 0
    assert len(full_disk.output()) + ended.log_lost_bytes == 588_895 + len(b"room\n")
    assert b" were lost: " in full_disk.output(3)
