"""Rows of a history as the executor writes them."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from procs.executor.store import UPSERT, open_if_possible, row
from shared.messages import HeldTask, TaskPhase
from shared.taskdir import Report


@dataclass(frozen=True)
class Ended:
    """A task that ended."""

    name: str
    phase: TaskPhase
    finished_unix_s: float
    attempt: int = 1
    ran_s: float = 1.0
    exit_code: int = 0
    error: str = ""
    image: str = "python:3.11"
    command: str = "python3 train.py"


def write_history(database: Path, *tasks: Ended) -> None:
    connection = open_if_possible(database)
    assert connection is not None
    with closing(connection):
        connection.execute("BEGIN")
        connection.executemany(UPSERT, [_row(task) for task in tasks])
        connection.execute("COMMIT")


def _row(task: Ended) -> tuple[object, ...]:
    began_unix_s = task.finished_unix_s - task.ran_s
    held = HeldTask(
        task_id=task.name,
        attempt=task.attempt,
        phase=task.phase,
        directory=f"{task.name}.{task.attempt}",
        image=task.image,
        command=(task.command,),
    )
    report = Report(
        task_id=task.name,
        attempt=task.attempt,
        phase=task.phase,
        exit_code=task.exit_code,
        error=task.error,
        started_unix_s=began_unix_s,
        finished_unix_s=task.finished_unix_s,
        run_s=task.ran_s,
    )
    return row(held, began_unix_s, report)
