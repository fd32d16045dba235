"""What is on disk, as attempts: the only recovery there is, and how a new one begins as well.

The directories decide; the database adds only the history of phases.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from procs.executor.attempt import Attempt
from procs.executor.claim import settle
from procs.executor.core import Step
from procs.executor.work import read_run, read_stop
from shared.messages import PhaseAt, TaskPhase
from shared.taskdir import CLAIM, REPORT, RUN, RecordError, TaskKey, held, read_report, read_spec

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
            spec = read_spec(directory)
            attempt = Attempt(spec=spec, directory=directory)
            attempt.phases = phases.get(key, ())
            _find_step(attempt, boot_id)
        except RecordError as err:
            log.error("task %s can't be held: %s", key.directory, err)
            continue
        yield attempt


def _find_step(attempt: Attempt, boot_id: str) -> None:
    directory = attempt.directory
    attempt.enter(TaskPhase.ACCEPTED, attempt.spec.accepted_unix_s)
    if (directory / REPORT).exists():
        attempt.report = read_report(directory)
        attempt.phases = attempt.report.phases
        attempt.enter(attempt.report.phase, attempt.report.finished_unix_s)
        attempt.step, attempt.may_have_container = Step.DONE, True
        return
    attempt.stop = read_stop(directory)
    attempt.record = read_run(directory)
    has_claim = (directory / CLAIM).exists()
    attempt.may_have_container = has_claim or attempt.record.started is not None
    if attempt.record.started is not None or attempt.record.failed_errno is not None:
        attempt.step = Step.STARTING
    elif has_claim and not _never_ran(directory):
        attempt.step = Step.STARTING  # a keeper has it: its word, or its death, will come
    else:
        return
    if attempt.stop is not None:
        attempt.step = Step.STOPPING


def _never_ran(directory: Path) -> bool:
    """Settle a start that may have been asked for by a life before this one."""
    return settle(directory) or not (directory / RUN).exists()
