"""What is on disk, as attempts: the only recovery there is, and how a new one begins as well.

The directories decide; the database adds only the history of phases.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from procs.executor.attempt import Attempt
from procs.executor.claim import settle
from procs.executor.core import Step
from procs.executor.made import read_made
from procs.executor.notes import read_grant, read_run, read_stop
from shared import sentences
from shared.messages import PhaseAt, TaskPhase
from shared.taskdir import (
    CLAIM,
    REPORT,
    RUN,
    RecordError,
    Report,
    Spec,
    TaskKey,
    held,
    read_report,
    read_spec,
)

log = logging.getLogger("executor")

_PHASES = (TaskPhase.ACCEPTED, TaskPhase.PREPARING, TaskPhase.RUNNING)


def recover(
    tasks: Path,
    phases: Mapping[TaskKey, tuple[PhaseAt, ...]],
    boot_id: str,
    only: TaskKey | None = None,
) -> Iterator[Attempt]:
    """Every attempt whose acceptance is on disk (or `only` one), at the step where it stands."""
    for key in held(tasks) if only is None else [only]:
        directory = tasks / key.directory
        try:
            attempt = _attempt(key, directory)
            attempt.phases = phases.get(key, ())
            _find_step(attempt, boot_id)
        except FileNotFoundError:
            continue  # it was not accepted
        except OSError as err:  # of the disk; read again when it is wanted again
            log.error("task %s can't be read now: %s", key.directory, err)
            continue
        yield attempt


def _attempt(key: TaskKey, directory: Path) -> Attempt:
    try:
        return Attempt(spec=_spec(key, directory), directory=directory)
    except RecordError as err:
        log.error("task %s can't be run: %s", key.directory, err)
        spec = Spec(task_id=key.task_id, attempt=key.attempt, image="")
        failure = sentences.SPEC_UNREADABLE.say(words=err)
        return Attempt(spec=spec, directory=directory, failure=failure)


def _spec(key: TaskKey, directory: Path) -> Spec:
    """RecordError: nobody can ever read it; OSError: not now."""
    try:
        spec = read_spec(directory)
    except RecordError as err:
        if isinstance(err.__cause__, OSError):
            raise err.__cause__ from err
        raise
    if spec.key != key:
        raise RecordError(f"it is of {spec.key.directory}")
    return spec


def _report(attempt: Attempt) -> Report | None:
    """None: not there, or unreadable; then it is made anew of what else there is."""
    if not (attempt.directory / REPORT).exists():
        return None
    try:
        return read_report(attempt.directory)
    except RecordError as err:
        log.error("task %s: its report is made anew: %s", attempt.key.directory, err)
        attempt.failure = sentences.REPORT_UNREADABLE.say(words=err)
        return None


def _find_step(attempt: Attempt, boot_id: str) -> None:
    directory = attempt.directory
    attempt.enter(TaskPhase.ACCEPTED, attempt.spec.accepted_unix_s)
    attempt.grant = read_grant(directory)
    if attempt.grant is not None:
        attempt.image_digest, attempt.pull_s = attempt.grant.image_digest, attempt.grant.pull_s
    attempt.report = _report(attempt)
    _remember_container(attempt)
    if attempt.report is not None:
        attempt.phases = attempt.report.phases
        attempt.enter(attempt.report.phase, attempt.report.finished_unix_s)
        attempt.step, attempt.may_have_container = Step.DONE, True
        return
    attempt.stop = read_stop(directory)
    attempt.record = read_run(directory)
    has_claim = (directory / CLAIM).exists()
    started = attempt.record.started
    attempt.may_have_container |= has_claim or started is not None
    if started is not None:  # a machine that goes down may end it in order, by a signal
        attempt.engine_lapsed = started.boot_id not in ("", boot_id)
    if started is not None or attempt.record.failed_errno is not None:
        attempt.step = Step.STARTING
    elif has_claim and not _never_ran(directory):
        attempt.step = Step.STARTING  # a keeper has it: its word, or its death, will come
    else:
        if any(p.phase is TaskPhase.RUNNING for p in attempt.phases):
            attempt.failure = sentences.RAN_BEFORE.say(words="its history says so")
        if attempt.stop is not None or attempt.failure is not None:
            attempt.step = Step.COLLECTING  # it never ran, and must not
        return
    if attempt.stop is not None:
        attempt.step = Step.STOPPING


def _remember_container(attempt: Attempt) -> None:
    made = read_made(attempt.directory)
    if made is not None:
        attempt.may_have_container = True
        attempt.container_id, attempt.stop_signal = made.container_id, made.stop_signal


def _never_ran(directory: Path) -> bool:
    """Settle a start that may have been asked for by a life before this one."""
    return settle(directory) or not (directory / RUN).exists()
