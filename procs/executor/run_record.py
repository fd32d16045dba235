"""Reads a keeper's record of a run. Pure. What it says is the task's own word: whatever does not
read exactly as a keeper writes it, and all that follows, is "not there"; nothing raises.
"""

import re
from dataclasses import dataclass

MOST_BYTES = 4096  # a keeper writes less; more is no keeper's

_NUMBER = rb"(0|[1-9][0-9]{0,18})"
_FIGURE = rb"(unknown|0|[1-9][0-9]{0,18})"
_UUID = rb"(unknown|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_TIMES = rb"unix_ns=" + _NUMBER + rb" monotonic_ns=" + _NUMBER
_STARTED = re.compile(rb"started " + _TIMES + rb" boot_id=" + _UUID)
_FAILED = re.compile(rb"failed errno=([1-9][0-9]{0,3})")
_ENDED = re.compile(
    rb"ended " + _TIMES + rb" code=([0-9]{1,3}) signal=([0-9]{1,2})"
    rb" max_rss_bytes=" + _FIGURE + rb" memory_peak_bytes=" + _FIGURE + rb" cpu_ns=" + _FIGURE +
    rb" oom_kills=" + _FIGURE + rb" log_dropped_bytes=" + _NUMBER + rb" log_lost_bytes=" + _NUMBER +
    rb"(?: block_read_bytes=" + _FIGURE + rb" block_written_bytes=" + _FIGURE +  # not of an older
    rb" network_received_bytes=" + _FIGURE + rb" network_sent_bytes=" + _FIGURE + rb")?"  # keeper
)  # fmt: skip
MOST = 2**63 - 1  # a keeper's numbers are signed
SIGNAL_BASE = 128  # a shell's exit code of a command that was killed is this plus the signal


@dataclass(frozen=True, slots=True)
class Started:
    unix_ns: int
    monotonic_ns: int
    boot_id: str  # "" where there is none to be had (gVisor)


def began_s(started: Started, now_s: float, now_unix_s: float) -> float:
    """By our monotonic clock, at most now. gVisor's own has another zero, so the wall clock says
    it there: to be asked once, before that clock is set anew."""
    if not started.boot_id:
        return now_s - max(now_unix_s - started.unix_ns / 1e9, 0.0)
    return min(started.monotonic_ns / 1e9, now_s)


@dataclass(frozen=True, slots=True)
class Ended:
    """None: a figure that could not be had. `code` is as a shell has it, 128 + signal if killed."""

    unix_ns: int
    monotonic_ns: int
    code: int
    signal: int
    max_rss_bytes: int | None
    memory_peak_bytes: int | None
    cpu_ns: int | None
    oom_kills: int | None
    log_dropped_bytes: int
    log_lost_bytes: int
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`started` None: it never ran, if its keeper is dead. `failed_errno`: the command could not
    be executed; `ended` then has 127 (not found) or 126."""

    started: Started | None
    failed_errno: int | None
    ended: Ended | None


def parse_run(raw: bytes) -> RunRecord:
    lines = raw[:MOST_BYTES].split(b"\n")[:-1]  # what has no newline was torn
    started = _started(lines.pop(0)) if lines else None
    if started is None:
        return RunRecord(None, None, None)
    failed = _FAILED.fullmatch(lines[0]) if lines else None
    if failed is not None:
        lines.pop(0)
    ended = _ended(lines[0]) if lines else None
    return RunRecord(started, int(failed[1]) if failed else None, ended)


def _started(line: bytes) -> Started | None:
    found = _match(_STARTED, line)
    if found is None:
        return None
    boot_id = "" if found[3] == b"unknown" else found[3].decode()
    return Started(int(found[1]), int(found[2]), boot_id)


def _ended(line: bytes) -> Ended | None:
    found = _match(_ENDED, line)
    if found is None:
        return None
    code, signal = int(found[3]), int(found[4])
    if code > 255 or (signal and code != SIGNAL_BASE + signal):
        return None
    return Ended(
        unix_ns=int(found[1]),
        monotonic_ns=int(found[2]),
        code=code,
        signal=signal,
        max_rss_bytes=_figure(found[5]),
        memory_peak_bytes=_figure(found[6]),
        cpu_ns=_figure(found[7]),
        oom_kills=_figure(found[8]),
        log_dropped_bytes=int(found[9]),
        log_lost_bytes=int(found[10]),
        block_read_bytes=_figure(found[11]),
        block_written_bytes=_figure(found[12]),
        network_received_bytes=_figure(found[13]),
        network_sent_bytes=_figure(found[14]),
    )


def _match(pattern: re.Pattern[bytes], line: bytes) -> re.Match[bytes] | None:
    found = pattern.fullmatch(line)
    groups = found.groups(b"") if found else ()
    if any(group.isdigit() and int(group) > MOST for group in groups):
        return None
    return found


def _figure(text: bytes | None) -> int | None:
    return None if text in (None, b"unknown") else int(text)
