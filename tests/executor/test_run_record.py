"""The parser of the keeper's record: what is not exactly a keeper's is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.executor.run_record import Ended, RunRecord, Started, began_s, parse_run

BOOT_ID = "fab1814c-5f2c-470e-8b89-cd3483973c00"
STARTED = f"started unix_ns=1795569884221746073 monotonic_ns=2892 boot_id={BOOT_ID}\n".encode()
ENDED = (
    b"ended unix_ns=1795569884232681175 monotonic_ns=2900 code=3 signal=0 max_rss_bytes=5"
    b" memory_peak_bytes=6 cpu_ns=7 oom_kills=8 log_dropped_bytes=9 log_lost_bytes=10\n"
)
KILLED = ENDED.replace(b"code=3 signal=0", b"code=137 signal=9")
NEVER_RAN = RunRecord(None, None, None)
BEGUN = Started(1795569884221746073, 2892, BOOT_ID)


def test_a_whole_record_is_read() -> None:
    ended = Ended(1795569884232681175, 2900, 3, 0, 5, 6, 7, 8, 9, 10)
    assert parse_run(STARTED + ENDED) == RunRecord(BEGUN, None, ended)


def test_a_record_with_block_and_network_figures_is_read() -> None:
    more = (
        b" block_read_bytes=11 block_written_bytes=unknown network_received_bytes=13"
        b" network_sent_bytes=14\n"
    )
    ended = Ended(1795569884232681175, 2900, 3, 0, 5, 6, 7, 8, 9, 10, 11, None, 13, 14)
    assert parse_run(STARTED + ENDED[:-1] + more).ended == ended
    assert parse_run(STARTED + ENDED[:-1] + more[:-25] + b"\n").ended is None


@pytest.mark.parametrize(
    ("monotonic_ns", "unix_s", "boot_id", "began"),
    [
        pytest.param(40 * 10**9, 0, BOOT_ID, 40.0, id="as it says"),
        pytest.param(40 * 10**9, 10**9, BOOT_ID, 40.0, id="whatever the wall clock says"),
        pytest.param(400 * 10**9, 0, BOOT_ID, 100.0, id="in the future: now"),
        pytest.param(40 * 10**9, 990, "", 90.0, id="gVisor: ten seconds ago"),
        pytest.param(40 * 10**9, 1010, "", 100.0, id="gVisor, in the future: now"),
    ],
)
def test_when_it_began_by_our_own_clock(
    monotonic_ns: int, unix_s: int, boot_id: str, began: float
) -> None:
    started = Started(unix_s * 10**9, monotonic_ns, boot_id)
    assert began_s(started, 100.0, 1000.0) == began


def test_unknown_figures_are_none() -> None:
    raw = ENDED.replace(b"=6", b"=unknown").replace(b"=7", b"=unknown").replace(b"=8", b"=unknown")
    ended = parse_run(STARTED + raw.replace(b"rss_bytes=5", b"rss_bytes=unknown")).ended
    assert ended is not None
    assert (ended.max_rss_bytes, ended.memory_peak_bytes, ended.cpu_ns) == (None, None, None)
    assert ended.oom_kills is None


def test_a_command_that_could_not_be_executed_is_told_apart() -> None:
    record = parse_run(STARTED + b"failed errno=2\n" + ENDED)
    assert record.failed_errno == 2
    assert record.ended is not None


def test_a_boot_id_that_is_not_to_be_had_is_empty() -> None:
    record = parse_run(STARTED.replace(BOOT_ID.encode(), b"unknown"))
    assert record.started is not None
    assert record.started.boot_id == ""


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(STARTED[:-1], id="torn in the first line"),
        pytest.param(ENDED, id="an end without a start"),
        pytest.param(b"\n" + STARTED, id="not the first line"),
        pytest.param(STARTED.replace(b"=2892", b"=-1"), id="negative"),
        pytest.param(STARTED.replace(b"=2892", b"=9223372036854775808"), id="past 63 bits"),
        pytest.param(STARTED.replace(b"=2892", b"=" + b"9" * 4000), id="digits without end"),
        pytest.param(STARTED.replace(b"=2892", "=٢".encode()), id="digits of another script"),
        pytest.param(STARTED.replace(b"=2892", b"=02892"), id="a leading zero"),
        pytest.param(STARTED.replace(b"fab1814c", b"FAB1814C"), id="no boot id"),
        pytest.param(STARTED.replace(b"\n", b"\r\n"), id="other newline"),
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(b"x" * 10_000_000, id="large"),
    ],
)
def test_without_a_good_first_line_it_never_ran(raw: bytes) -> None:
    assert parse_run(raw) == NEVER_RAN


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(b"", id="none"),
        pytest.param(ENDED[:-1], id="torn"),
        pytest.param(STARTED + ENDED, id="doubled start"),
        pytest.param(ENDED.replace(b"code=3", b"code=256"), id="no exit code"),
        pytest.param(ENDED.replace(b"signal=0", b"signal=9"), id="code and signal disagree"),
        pytest.param(KILLED.replace(b"signal=9", b"signal=99"), id="no signal"),
        pytest.param(ENDED.replace(b"dropped_bytes=9", b"dropped_bytes=unknown"), id="no count"),
        pytest.param(ENDED.replace(b" oom_kills=8", b""), id="a figure is missing"),
        pytest.param(b"failed errno=0\n" + ENDED, id="no errno"),
        pytest.param(b"\0" + ENDED, id="a zero byte"),
    ],
)
def test_a_bad_end_is_not_there(end: bytes) -> None:
    assert parse_run(STARTED + end) == RunRecord(BEGUN, None, None)


def test_what_follows_the_end_changes_nothing() -> None:
    assert parse_run(STARTED + ENDED + KILLED + b"junk\xff\n") == parse_run(STARTED + ENDED)


def test_a_killed_command_has_its_signal() -> None:
    ended = parse_run(STARTED + KILLED).ended
    assert ended is not None
    assert (ended.code, ended.signal) == (137, 9)


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 300))
def test_nothing_raises(junk: bytes, at: int, cut: int) -> None:
    whole = STARTED + ENDED
    for raw in (junk, whole[:at] + junk + whole[at:], whole[:at] + junk + whole[at + cut :]):
        parse_run(raw)
