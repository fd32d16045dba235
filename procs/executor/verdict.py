"""What an attempt's end means: its final phase, exit code, cause and one sentence. Pure.

The run record is the truth where it has `ended`. Without it the engine's word and the boot id
decide whose fault it was.
"""

import os
import signal
from dataclasses import dataclass

from procs.executor.run_record import SIGNAL_BASE, Ended, RunRecord
from shared import sentences
from shared.messages import TaskPhase
from shared.sentences import Said

NEVER_RAN = -1  # the contract's; what ran has another, however it was lost
SIGKILL = 9
WITHOUT_A_WORD = SIGNAL_BASE + SIGKILL  # what ended it let it say nothing
ENGINE_SIGNALS = (SIGKILL, signal.SIGTERM)  # to what it finds running, without live-restore
LOST_TO_ENGINE = 255


@dataclass(frozen=True)
class Stop:
    """We told it to end; `phase` is what it then becomes. It lies on disk: text, not `Said`."""

    phase: TaskPhase
    sentence: str
    monotonic_ns: int
    boot_id: str
    unix_ns: int = 0

    @classmethod
    def because(
        cls, said: Said[TaskPhase], monotonic_ns: int, boot_id: str, unix_ns: int
    ) -> "Stop":
        return cls(said.code, said.text, monotonic_ns, boot_id, unix_ns)

    @property
    def is_hard(self) -> bool:
        """Without grace, in which it would go on to write."""
        return self.phase is TaskPhase.OUT_OF_DISK


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
    """The end. Anything but success is made of a sentence: `of`."""

    phase: TaskPhase
    exit_code: int
    cause: str = ""
    sentence: str = ""

    @classmethod
    def of(cls, said: Said[TaskPhase], exit_code: int) -> "Verdict":
        return cls(said.code, exit_code, said.cause, said.text)


def judge(
    record: RunRecord,
    stop: Stop | None,
    failure: Said[TaskPhase] | None,
    loss: Loss | None,
    *,
    engine_lapsed: bool = False,
) -> Verdict:
    """What became of it. `engine_lapsed`: the engine went away under it, and it has not been seen
    to run since."""
    if record.failed_errno is not None:
        why = os.strerror(record.failed_errno)
        return Verdict.of(sentences.COMMAND_NOT_STARTED.say(words=why), NEVER_RAN)
    if record.ended is not None:
        if stop is not None and not _ended_before(record, stop):
            return _stopped(stop, record.ended.code)
        return _ended(record.ended, engine_lapsed)
    if stop is not None:
        return _stopped(stop, _last_code(record, loss))
    if failure is not None:
        return Verdict.of(failure, _last_code(record, loss))
    if loss is not None:
        return Verdict.of(_lost(loss), _last_code(record, loss))
    return Verdict.of(sentences.END_UNKNOWN.say(), _last_code(record, loss))


def _last_code(record: RunRecord, loss: Loss | None) -> int:
    """Of what wrote no end: the engine's word, if it has one."""
    if record.started is None:
        return NEVER_RAN
    if loss is None or loss.out_of_memory:
        return WITHOUT_A_WORD
    return loss.exit_code or WITHOUT_A_WORD


def _stopped(stop: Stop, exit_code: int) -> Verdict:
    return Verdict(stop.phase, exit_code, "", stop.sentence)


def _ended_before(record: RunRecord, stop: Stop) -> bool:
    """Did it end by itself before it was told to? By the wall clock in gVisor, which has no boot
    id and a monotonic clock of its own."""
    started, ended = record.started, record.ended
    if started is None or ended is None:
        return False
    if not started.boot_id:
        return ended.unix_ns < stop.unix_ns
    return ended.monotonic_ns < stop.monotonic_ns


def _ended(ended: Ended, engine_lapsed: bool) -> Verdict:
    if ended.signal == SIGKILL and (ended.oom_kills or 0) > 0:
        return Verdict.of(sentences.OUT_OF_MEMORY.say(), ended.code)
    if ended.code == 0:
        return Verdict(TaskPhase.SUCCEEDED, 0)
    if engine_lapsed and ended.signal in ENGINE_SIGNALS:
        return Verdict.of(sentences.ENGINE_ENDED_IT.say(), ended.code)
    if ended.signal:
        said = sentences.KILLED.say(number=ended.signal, name=_signal_name(ended.signal))
        return Verdict.of(said, ended.code)
    return Verdict.of(sentences.EXITED.say(code=ended.code), ended.code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"  # real-time signals, and what a forged record says


def _lost(loss: Loss) -> Said[TaskPhase]:
    if not loss.same_boot:
        return sentences.MACHINE_RESTARTED.say()
    if loss.out_of_memory:
        return sentences.OUT_OF_MEMORY.say()
    if loss.engine_lapsed or (loss.present and loss.exit_code == LOST_TO_ENGINE):
        return sentences.ENGINE_WENT_DOWN.say()
    if not loss.present:
        return sentences.CONTAINER_REMOVED.say()
    return sentences.KEEPER_KILLED.say()
