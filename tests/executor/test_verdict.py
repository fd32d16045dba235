"""What an end means."""

from dataclasses import replace

import pytest

from procs.executor.run_record import Ended, RunRecord, Started
from procs.executor.verdict import Loss, Stop, Verdict, judge
from shared import sentences
from shared.messages import TaskPhase
from shared.sentences import Said

BOOT = "00000000-0000-0000-0000-000000000001"
STARTED = Started(unix_ns=1, monotonic_ns=1, boot_id=BOOT)
NEVER = RunRecord(None, None, None)
UNENDED = RunRecord(STARTED, None, None)
FAILURE = sentences.IMAGE_NOT_PULLED.say(image="i", words="no such image")


def ended(code: int, signal: int = 0, oom_kills: int | None = 0, errno: int = 0) -> RunRecord:
    end = Ended(
        unix_ns=9, monotonic_ns=9, code=code, signal=signal, max_rss_bytes=None,
        memory_peak_bytes=None, cpu_ns=None, oom_kills=oom_kills, log_dropped_bytes=0,
        log_lost_bytes=0,
    )  # fmt: skip
    return RunRecord(STARTED, errno or None, end)


def stop(monotonic_ns: int) -> Stop:
    return Stop(TaskPhase.TIMED_OUT, "too long", monotonic_ns, BOOT, unix_ns=10**18)


@pytest.mark.parametrize(("stopped_unix_ns", "phase"), [(8, "timed_out"), (10, "succeeded")])
def test_without_a_boot_id_the_wall_clock_says_which_came_first(
    stopped_unix_ns: int, phase: str
) -> None:
    record = RunRecord(replace(STARTED, boot_id=""), None, ended(0).ended)
    stopped = Stop(TaskPhase.TIMED_OUT, "too long", 10**12, BOOT, stopped_unix_ns)
    assert judge(record, stopped, None, None).phase == phase


def loss(
    *, same_boot: bool = True, lapsed: bool = False, present: bool = True, code: int = 137,
    out_of_memory: bool = False,
) -> Loss:  # fmt: skip
    return Loss(same_boot, lapsed, present, code, out_of_memory)


@pytest.mark.parametrize(
    ("record", "stopped", "failure", "lost", "phase", "code", "cause"),
    [
        pytest.param(ended(0), None, None, None, "succeeded", 0, "", id="zero"),
        pytest.param(ended(3), None, None, None, "failed", 3, "exit", id="three"),
        pytest.param(ended(143, 15), None, None, None, "failed", 143, "exit", id="a signal"),
        pytest.param(ended(137, 9), None, None, None, "failed", 137, "exit", id="killed"),
        pytest.param(ended(137, 9, 1), None, None, None, "out_of_memory", 137, "", id="oom"),
        pytest.param(ended(137, 9, None), None, None, None, "failed", 137, "exit", id="unknown"),
        pytest.param(ended(1, 0, 1), None, None, None, "failed", 1, "exit", id="a child's oom"),
        pytest.param(ended(127, 0, 0, 2), None, None, None, "failed", -1, "start", id="no exec"),
        pytest.param(ended(0), stop(8), None, None, "timed_out", 0, "", id="stopped before"),
        pytest.param(ended(0), stop(10), None, None, "succeeded", 0, "", id="ended before"),
        pytest.param(ended(137, 9, 1), stop(8), None, None, "timed_out", 137, "", id="oom late"),
        pytest.param(NEVER, stop(8), None, None, "timed_out", -1, "", id="never ran"),
        pytest.param(NEVER, stop(8), FAILURE, None, "timed_out", -1, "", id="stop over failure"),
        pytest.param(NEVER, None, FAILURE, None, "failed", -1, "image", id="not made ready"),
        pytest.param(NEVER, None, None, None, "failed", -1, "node", id="nothing known"),
        pytest.param(UNENDED, None, None, loss(same_boot=False), "failed", 137, "interrupted",
                     id="another boot"),
        pytest.param(UNENDED, None, None, loss(lapsed=True), "failed", 137, "interrupted",
                     id="the engine was away"),
        pytest.param(UNENDED, None, None, loss(code=255), "failed", 255, "interrupted", id="255"),
        pytest.param(UNENDED, None, None, loss(present=False), "failed", 137, "removed",
                     id="removed"),
        pytest.param(UNENDED, None, None, loss(out_of_memory=True), "out_of_memory", 137, "",
                     id="the keeper too"),
        pytest.param(UNENDED, None, None, loss(code=139), "failed", 139, "exit",
                     id="it killed its keeper"),
        pytest.param(UNENDED, stop(8), None, loss(), "timed_out", 137, "", id="stop over loss"),
        pytest.param(UNENDED, stop(8), None, loss(code=0, present=False), "timed_out", 137, "",
                     id="stopped, then removed"),
        pytest.param(UNENDED, stop(8), None, None, "timed_out", 137, "", id="stopped, then lost"),
        pytest.param(UNENDED, None, FAILURE, loss(), "failed", 137, "image", id="ran anyway"),
        pytest.param(UNENDED, None, None, None, "failed", 137, "node", id="ran, nothing known"),
    ],
)  # fmt: skip
def test_an_end(
    record: RunRecord, stopped: Stop | None, failure: Said[TaskPhase] | None, lost: Loss | None,
    phase: str, code: int, cause: str,
) -> None:  # fmt: skip
    found = judge(record, stopped, failure, lost)
    assert (found.phase, found.exit_code, found.cause) == (phase, code, cause)
    assert (found.sentence == "") is (phase == "succeeded"), found


def test_success_says_nothing() -> None:
    assert judge(ended(0), None, None, None) == Verdict(TaskPhase.SUCCEEDED, 0)


@pytest.mark.parametrize(
    ("record", "lapsed", "phase", "code", "cause"),
    [
        pytest.param(ended(143, 15), True, "failed", 143, "interrupted", id="told to end"),
        pytest.param(ended(137, 9), True, "failed", 137, "interrupted", id="killed"),
        pytest.param(ended(143, 15), False, "failed", 143, "exit", id="no lapse"),
        pytest.param(ended(3), True, "failed", 3, "exit", id="its own end"),
        pytest.param(ended(0), True, "succeeded", 0, "", id="its own success"),
    ],
)
def test_an_engine_that_ends_what_it_finds_interrupts_it(
    record: RunRecord, lapsed: bool, phase: str, code: int, cause: str
) -> None:
    found = judge(record, None, None, None, engine_lapsed=lapsed)
    assert (found.phase, found.exit_code, found.cause) == (phase, code, cause)
