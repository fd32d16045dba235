"""What follows from wanting."""

from pathlib import Path

import pytest

from procs.executor.attempt import Attempt
from procs.executor.core import Step
from procs.executor.wants import ABSENT_S, End, Release, Take, compare
from shared import sentences
from shared.messages import StopReason, TaskPhase, TaskWant, WantedTask
from shared.taskdir import Spec, TaskKey

KEY = TaskKey("t", 1)
NOTHING = TaskWant(at_s=0.0)


def held(step: Step = Step.RUNNING) -> dict[TaskKey, Attempt]:
    spec = Spec(task_id="t", attempt=1, image="i")
    return {KEY: Attempt(spec=spec, directory=Path("t.1"), step=step)}


def want(stop: StopReason | None = None, detail: str = "") -> TaskWant:
    one = WantedTask(task_id="t", attempt=1, stop=stop, stop_detail=detail)
    return TaskWant(at_s=0.0, tasks=(one,))


def test_what_is_new_is_taken_and_what_is_held_stays() -> None:
    assert compare(want(), {}, 0.0) == [Take(KEY)]
    assert compare(want(), held(), 0.0) == []


def test_what_is_new_and_to_be_stopped_is_taken_first() -> None:
    found = compare(want(StopReason.OWNER), {}, 0.0)
    assert found == [Take(KEY), End(KEY, sentences.STOPPED_BY_OWNER.say())]


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_reason_has_its_sentence(reason: StopReason) -> None:
    (end,) = compare(want(reason), held(), 0.0)
    assert isinstance(end, End)
    assert end.said.code is TaskPhase.CANCELLED


@pytest.mark.parametrize(
    ("reason", "detail", "words"),
    [
        (StopReason.CANCELLED, "enough", "the master cancelled it: enough;"),
        (StopReason.CANCELLED, "", "the master cancelled it: it gave no reason;"),
        (StopReason.SUPERSEDED, "attempt 2", "attempt 2 of the task has been assigned;"),
        (StopReason.FORGOTTEN, "", "asked to forget it;"),
        (StopReason.OWNER, "", "the machine's owner stopped it;"),
    ],
)
def test_why_it_ends_is_said(reason: StopReason, detail: str, words: str) -> None:
    (end,) = compare(want(reason, detail), held(), 0.0)
    assert isinstance(end, End)
    assert words in end.said.text


def test_what_is_not_wanted_ends_only_after_a_time_of_fresh_messages() -> None:
    attempts = held()
    assert compare(NOTHING, attempts, 10.0) == []
    assert compare(NOTHING, attempts, 10.0 + ABSENT_S - 0.1) == []
    (end,) = compare(NOTHING, attempts, 10.0 + ABSENT_S)
    assert isinstance(end, End)


@pytest.mark.parametrize("between", [pytest.param(None, id="silence"), want()])
def test_silence_or_being_wanted_again_begins_the_time_anew(between: TaskWant | None) -> None:
    attempts = held()
    compare(NOTHING, attempts, 10.0)
    assert compare(between, attempts, 20.0) == []
    assert compare(NOTHING, attempts, 10.0 + ABSENT_S) == []


def test_what_was_delivered_is_released_once_it_is_clean() -> None:
    assert compare(NOTHING, held(Step.CLEANED), 0.0) == [Release(KEY)]
    assert compare(want(), held(Step.CLEANED), 0.0) == []
    assert compare(None, held(Step.CLEANED), 0.0) == []
