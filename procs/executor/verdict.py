"""What an attempt's end means: its final phase, exit code, cause and one sentence. Pure.

The run record is the truth where it has `ended`. Without it the engine's word and the boot id
decide whose fault it was.
"""

import os
import signal
from dataclasses import dataclass

from procs.executor.run_record import Ended, RunRecord
from shared.messages import TaskPhase

NEVER_RAN = -1
SIGKILL = 9
ENGINE_SIGNALS = (SIGKILL, signal.SIGTERM)  # to what it finds running, without live-restore
LOST_TO_ENGINE = 255


@dataclass(frozen=True)
class Stop:
    """We told it to end; `phase` is what it then becomes."""

    phase: TaskPhase
    sentence: str
    monotonic_ns: int
    boot_id: str


@dataclass(frozen=True)
class Failure:
    """It could not be made ready. `cause` is the contract's FailureCause in lower case."""

    cause: str
    sentence: str


@dataclass(frozen=True)
class Loss:
    """Its process is gone without an end of its own word."""

    same_boot: bool
    engine_lapsed: bool
    present: bool  # its container is still known to the engine
    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True)
class Verdict:
    """The end."""

    phase: TaskPhase
    exit_code: int
    cause: str = ""
    sentence: str = ""


def judge(
    record: RunRecord,
    stop: Stop | None,
    failure: Failure | None,
    loss: Loss | None,
    *,
    engine_lapsed: bool = False,
) -> Verdict:
    """What became of it. `engine_lapsed`: the engine went away under it, and it has not been seen
    to run since."""
    if record.failed_errno is not None:
        why = os.strerror(record.failed_errno)
        return Verdict(
            TaskPhase.FAILED, NEVER_RAN, "start", f"the command could not be started: {why}"
        )
    if record.ended is not None:
        return _ended(record.ended, stop, engine_lapsed)
    if stop is not None:
        return Verdict(stop.phase, loss.exit_code if loss else NEVER_RAN, "", stop.sentence)
    if failure is not None:
        return Verdict(TaskPhase.FAILED, NEVER_RAN, failure.cause, failure.sentence)
    if loss is not None:
        return _lost(loss)
    return Verdict(TaskPhase.FAILED, NEVER_RAN, "node", "it ended, and nothing says how")


def _ended(ended: Ended, stop: Stop | None, engine_lapsed: bool) -> Verdict:
    if stop is not None and ended.monotonic_ns >= stop.monotonic_ns:
        return Verdict(stop.phase, ended.code, "", stop.sentence)
    if ended.signal == SIGKILL and (ended.oom_kills or 0) > 0:
        return Verdict(
            TaskPhase.OUT_OF_MEMORY, ended.code, "", "it was killed at its limit of memory"
        )
    if ended.code == 0:
        return Verdict(TaskPhase.SUCCEEDED, 0)
    if engine_lapsed and ended.signal in ENGINE_SIGNALS:
        return _interrupted("the container engine went down under it, then ended it")
    how = f"was killed by signal {ended.signal}" if ended.signal else f"exited {ended.code}"
    return Verdict(TaskPhase.FAILED, ended.code, "exit", f"the command {how}")


def _lost(loss: Loss) -> Verdict:
    if not loss.same_boot:
        return _interrupted("the machine was started anew under it")
    if loss.out_of_memory:
        return Verdict(TaskPhase.OUT_OF_MEMORY, 137, "", "it was killed at its limit of memory")
    if loss.engine_lapsed or (loss.present and loss.exit_code == LOST_TO_ENGINE):
        return _interrupted("the container engine went down under it")
    if not loss.present:
        return Verdict(TaskPhase.FAILED, 137, "removed", "someone else removed its container")
    return Verdict(
        TaskPhase.FAILED, loss.exit_code or 137, "exit", "it killed the keeper of its container"
    )


def _interrupted(sentence: str) -> Verdict:
    return Verdict(TaskPhase.FAILED, NEVER_RAN, "interrupted", sentence)
