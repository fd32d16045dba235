"""What is wanted, compared with what is held. Silence and staleness are no news. Pure but for
`absent_since_s`, the note of since when an attempt is not wanted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from procs.executor.attempt import Attempt
from procs.executor.core import Step
from shared import sentences
from shared.messages import StopReason, TaskPhase, TaskWant
from shared.sentences import Said
from shared.taskdir import TaskKey

ABSENT_S = 60.0  # a running task that is not wanted is stopped after so long of fresh messages


@dataclass(frozen=True)
class Take:
    """It is new."""

    key: TaskKey


@dataclass(frozen=True)
class End:
    """It should not run any more, and why."""

    key: TaskKey
    said: Said[TaskPhase]


@dataclass(frozen=True)
class Release:
    """Its result was delivered, and nothing is left of it here."""

    key: TaskKey


Decision = Take | End | Release


def compare(
    want: TaskWant | None, attempts: Mapping[TaskKey, Attempt], now_s: float
) -> list[Decision]:
    """`want` None: no news."""
    if want is None:
        for attempt in attempts.values():
            attempt.absent_since_s = None
        return []
    return [*_wanted(want, attempts), *_unwanted(want, attempts, now_s)]


def _wanted(want: TaskWant, attempts: Mapping[TaskKey, Attempt]) -> Iterator[Decision]:
    for one in want.tasks:
        key = TaskKey(one.task_id, one.attempt)
        if key in attempts:
            attempts[key].absent_since_s = None
        else:
            yield Take(key)
        if one.stop is not None:
            yield End(key, _said(one.stop, one.stop_detail))


def _unwanted(
    want: TaskWant, attempts: Mapping[TaskKey, Attempt], now_s: float
) -> Iterator[Decision]:
    wanted = {TaskKey(one.task_id, one.attempt) for one in want.tasks}
    for key, attempt in attempts.items():
        if key in wanted:
            continue
        if attempt.step is Step.CLEANED:
            yield Release(key)
        elif attempt.absent_since_s is None:
            attempt.absent_since_s = now_s
        elif now_s - attempt.absent_since_s >= ABSENT_S:
            yield End(key, sentences.UNWANTED.say())


def _said(why: StopReason, detail: str) -> Said[TaskPhase]:
    match why:
        case StopReason.CANCELLED:
            return sentences.CANCELLED.say(reason=detail or "it gave no reason")
        case StopReason.SUPERSEDED:
            return sentences.SUPERSEDED.say(newer=detail or "a newer attempt")
        case StopReason.FORGOTTEN:
            return sentences.FORGOTTEN.say()
        case StopReason.OWNER:
            return sentences.STOPPED_BY_OWNER.say()
