"""What the keeper does with commands of every kind. Each runs for real, as the task's user."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.executor.keeper_fixtures import attempt, hostile, keeper
from tests.executor.keeper_kit import CLAIM, HOSTILE, PATH, TMP, Attempt, wait_until

__all__ = ["attempt", "hostile", "keeper"]
BINARY_FILE = Path("/bin/bash").resolve()  # a megabyte of every byte, readable for everyone


def test_a_command_runs_and_its_output_and_end_are_recorded(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert attempt.run() == 3
    assert attempt.output(1) == b"out\n"
    assert attempt.output(2) == b"err\n"
    record = attempt.record
    assert record.started is not None
    assert record.failed_errno is None
    assert record.ended is not None
    assert (record.ended.code, record.ended.signal) == (3, 0)
    assert record.started.monotonic_ns < record.ended.monotonic_ns
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert record.started.boot_id == boot_id
    assert record.ended.max_rss_bytes is not None
    assert record.ended.max_rss_bytes > 100_000


def test_it_refuses_to_be_anything_but_pid_1(keeper: Path, tmp_path: Path) -> None:
    done = subprocess.run([keeper, tmp_path], capture_output=True, check=False)
    assert done.returncode == 125
    assert b"PID 1" in done.stderr


def test_a_command_that_is_killed_ends_with_128_and_the_signal(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "segv"])
    assert attempt.run() == 139
    assert attempt.record.ended is not None
    assert (attempt.record.ended.code, attempt.record.ended.signal) == (139, 11)


@pytest.mark.parametrize(
    ("argv", "environment", "number", "code"),
    [
        pytest.param(["/nope"], {}, errno.ENOENT, 127, id="no such file"),
        pytest.param(["nope"], {"PATH": PATH}, errno.ENOENT, 127, id="nowhere in PATH"),
        pytest.param([""], {"PATH": PATH}, errno.ENOENT, 127, id="empty name"),
        pytest.param(["/etc/passwd"], {}, errno.EACCES, 126, id="not executable"),
        pytest.param(["passwd"], {"PATH": "/etc:/nope"}, errno.EACCES, 126, id="in PATH, neither"),
        pytest.param(["/bin"], {}, errno.EACCES, 126, id="a directory"),
        pytest.param(["/etc/passwd/x"], {}, errno.ENOTDIR, 126, id="not a directory"),
        pytest.param(["sh"], {"PATH": "/nope:" + "x" * 9000}, errno.ENOENT, 127, id="long PATH"),
    ],
)
def test_a_command_that_cannot_be_executed(
    attempt: Attempt, argv: list[str], environment: dict[str, str], number: int, code: int
) -> None:
    attempt.claim(argv, environment)
    assert attempt.run() == code
    record = attempt.record
    assert record.failed_errno == number
    assert record.ended is not None
    assert (record.ended.code, record.ended.signal) == (code, 0)


def test_a_script_without_an_interpreter_is_not_run_by_a_shell(attempt: Attempt) -> None:
    attempt.claim([f"{CLAIM}/script"])
    script = attempt.directory / "claim" / "script"
    script.write_text("echo ran\n")
    script.chmod(0o755)
    assert attempt.run() == 126
    assert attempt.record.failed_errno == errno.ENOEXEC
    assert attempt.output() == b""


def test_a_fork_that_is_refused_is_a_failure_not_a_hang(attempt: Attempt) -> None:
    attempt.claim(["true"])
    assert attempt.run("prlimit", "--nproc=0") == 126
    assert attempt.record.failed_errno == errno.EAGAIN


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        pytest.param({}, b"found\n", id="no PATH: the default"),
        pytest.param({"PATH": "/nope:/etc/passwd:/bin"}, b"found\n", id="the last of three"),
    ],
)
def test_path_is_searched(attempt: Attempt, environment: dict[str, str], found: bytes) -> None:
    attempt.claim(["echo", "found"], environment)
    assert attempt.run() == 0
    assert attempt.output() == found


def test_argv_and_environment_are_exactly_those_given(attempt: Attempt) -> None:
    script = 'printf "%s|" "$@"; cat /proc/$$/environ'
    environment = {"PATH": PATH, "SECRET": "a=b\nc", "EMPTY": ""}
    attempt.claim(["sh", "-c", script, "0", b"\xff\xfe", "", "last"], environment)
    assert attempt.run() == 0
    arguments, _, rest = attempt.output().rpartition(b"|")
    assert arguments == b"\xff\xfe||last"
    given = [f"{name}={value}\0".encode() for name, value in environment.items()]
    assert rest == b"".join(given)


def test_the_largest_start_that_is_admitted_runs(attempt: Attempt) -> None:
    strings = ["x" * 131_000] * 15
    attempt.claim(["sh", "-c", "echo $#", "0", *strings])
    assert attempt.run() == 0
    assert attempt.output() == b"15\n"


def test_the_command_inherits_three_descriptors_and_leads_a_session(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "descriptors"])
    assert attempt.run("sh", "-c", 'exec 7</etc/passwd; exec "$@"', "sh") == 0
    assert attempt.output() == b"0 1 2 leader\n"


def test_its_input_is_empty(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "cat; readlink /proc/self/fd/0"])
    assert attempt.run() == 0
    assert attempt.output() == b"/dev/null\n"


def test_output_can_be_opened_by_path(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr"])
    assert attempt.run() == 0
    assert (attempt.output(1), attempt.output(2)) == (b"out\n", b"err\n")


def test_the_kernel_takes_the_command_before_its_keeper(attempt: Attempt) -> None:
    attempt.claim(["cat", "/proc/self/oom_score_adj"])
    assert attempt.run() == 0
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(attempt.output()) == min(own + 100, 1000)


def test_the_directory_is_not_changed(attempt: Attempt) -> None:
    attempt.claim(["pwd"])
    assert attempt.run("env", "-C", "/usr/bin") == 0
    assert attempt.output() == b"/usr/bin\n"


def test_large_binary_output_on_both_streams_is_exact(attempt: Attempt) -> None:
    count = 12
    parts = " ".join([str(BINARY_FILE)] * count)
    attempt.claim(["sh", "-c", f"cat {parts} & cat {parts} >&2; wait"])
    assert attempt.run() == 0
    content = BINARY_FILE.read_bytes() * count
    assert attempt.output(1) == content
    assert attempt.output(2) == content
    records = attempt.log
    assert [record.sequence for record in records] == list(range(len(records)))
    assert all(0 < len(record.data) <= 65536 for record in records)
    ended = attempt.record.ended
    assert ended is not None
    assert (ended.log_dropped_bytes, ended.log_lost_bytes) == (0, 0)


def test_small_writes_share_records(attempt: Attempt) -> None:
    attempt.claim(["dd", "if=/dev/zero", "bs=1", "count=50000", "status=none"])
    assert attempt.run() == 0
    assert attempt.output() == bytes(50_000)
    assert len(attempt.log) < 10_000


def test_past_the_limit_output_is_dropped_and_said_so(attempt: Attempt) -> None:
    limit = 2**20 + 5000
    total = 3 * 2**20
    attempt.claim(["head", "-c", str(total), "/dev/zero"], log_limit_bytes=limit)
    assert attempt.run() == 0
    kept = len(attempt.output())
    ended = attempt.record.ended
    assert ended is not None
    assert kept + ended.log_dropped_bytes == total
    assert limit - 100 < kept + 24 * len(attempt.log) < limit + 300
    note = attempt.log[-1]
    assert note.stream == 3
    text = f"{ended.log_dropped_bytes} bytes of output were dropped: the log's limit is {limit}"
    assert text.encode() in note.data


def test_a_limit_of_nothing_keeps_only_the_note(attempt: Attempt) -> None:
    attempt.claim(["echo", "hello"], log_limit_bytes=0)
    assert attempt.run() == 0
    assert [record.stream for record in attempt.log] == [3]
    assert b" 6 bytes " in attempt.log[0].data


def test_a_note_across_the_end_of_a_mib_can_be_read(attempt: Attempt) -> None:
    for limit in range(2**20 - 60, 2**20 + 30, 9):
        attempt.claim(["head", "-c", "1200000", "/dev/zero"], log_limit_bytes=limit)
        assert attempt.run() == 0
        note = attempt.output(3)
        assert note.endswith(f"limit is {limit} bytes\n".encode())
        attempt.forget()


def test_the_file_limit_is_the_commands_not_the_logs(attempt: Attempt) -> None:
    script = f"cat {BINARY_FILE}; exec dd if=/dev/zero of={TMP}/file bs=64k count=4 status=none"
    attempt.claim(["sh", "-c", script], file_limit_bytes=100_000)
    assert attempt.run() == 128 + signal.SIGXFSZ
    assert attempt.output() == BINARY_FILE.read_bytes()


def test_a_command_that_closes_its_output_goes_on(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "echo a; exec >&- 2>&-; true; exit 5"])
    assert attempt.run() == 5
    assert attempt.output() == b"a\n"


def test_what_it_leaves_running_dies_with_it_and_what_that_wrote_is_kept(attempt: Attempt) -> None:
    script = f"{HOSTILE} ignore & setsid sh -c 'echo daemon; exec sleep 1000' & sleep 0.2; echo end"
    attempt.claim(["sh", "-c", script])
    assert attempt.run() == 0
    assert {b"ready", b"daemon", b"end"} == set(attempt.output().split())


def test_a_thousand_orphans_are_reaped(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "orphans", os.environ.get("HIVEMIND_TEST_ORPHANS", "1000")])
    assert attempt.run() == 0
    assert attempt.output() == b"left\n"
    assert attempt.record.ended is not None


NOT_SENT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPWR, signal.SIGUSR1}


def test_every_signal_from_outside_reaches_the_command(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "signals"])
    process = attempt.start()
    pid = attempt.keeper_pid(process)
    attempt.wait_for_output(b"ready\n")
    numbers = [number for number in range(1, 65) if number not in NOT_SENT]
    for number in [*numbers, signal.SIGUSR1]:
        os.kill(pid, number)
        attempt.wait_for_output(f"\n{int(number)}\n".encode())
    process.communicate(timeout=60)
    assert process.returncode == 9


def test_sigpwr_from_outside_is_the_hard_stop(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", f"trap '' TERM; {HOSTILE} ignore & {HOSTILE} ignore"])
    process = attempt.start()
    pid = attempt.keeper_pid(process)
    wait_until(lambda: attempt.output() == b"ready\nready\n")
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGPWR)
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert attempt.record.ended is not None
    assert (attempt.record.ended.code, attempt.record.ended.signal) == (137, 9)


def test_sigpwr_from_inside_is_only_forwarded(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "trap 'echo caught; exit 6' PWR; kill -PWR 1; while :; do :; done"])
    assert attempt.run() == 6
    assert attempt.output() == b"caught\n"


def test_a_fault_signal_from_inside_is_not_forwarded(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "kill -SEGV 1; kill -ABRT 1; kill -USR1 1; sleep 60"])
    assert attempt.run() == 128 + signal.SIGUSR1


def test_a_test_that_stops_early_leaves_no_keeper(attempt: Attempt) -> None:
    attempt.claim([HOSTILE, "ignore"])
    pid = attempt.keeper_pid(attempt.start())
    attempt.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
