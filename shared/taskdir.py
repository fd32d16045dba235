"""A task's directory: the names of what lies in it, and the two records that are JSON.

`spec` is the assignment without its secrets; its presence is the acceptance. `report` is the
final report; its presence is the end. One writer for each file, as the table in README says.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from shared.files import write_atomic
from shared.messages import PhaseAt, TaskPhase

SPEC, SECRETS, REPORT, RESULT = "spec", "secrets", "report", "result"
INPUT, INLINE, OUTPUT, CLAIM = "input", "inline", "output", "claim"
LOG, RUN, ARCHIVE = "log", "run", "output.tar.gz"
TASKS, KEPT = "tasks", "kept"  # below the home: held attempts; delivered ones, for a day
DEBUG = "debug"  # … and what is left of those that failed
LAYERS, SITE = "layers", "site"  # below the home: installed requirements, `layers/<name>/site`
TASK_ID = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")

MIB, GIB = 2**20, 2**30
DEFAULT_OUTPUT_LIMIT_BYTES = GIB
DEFAULT_LOG_LIMIT_BYTES = 64 * MIB
DEFAULT_STOP_GRACE_S = 10.0
DEFAULT_TIMEOUT_S = 24 * 3600.0  # where the assignment names none: nothing runs for ever

R = TypeVar("R", bound=msgspec.Struct)


class TaskKey(NamedTuple):
    """Names an attempt."""

    task_id: str
    attempt: int

    @property
    def directory(self) -> str:
        return f"{self.task_id}.{self.attempt}"

    @classmethod
    def parse(cls, directory: str) -> "TaskKey | None":
        """The key that a directory's name means; None when it is not one of ours."""
        task_id, _, attempt = directory.rpartition(".")
        if not TASK_ID.fullmatch(task_id) or not re.fullmatch(r"[1-9][0-9]{0,9}", attempt):
            return None
        return cls(task_id, int(attempt))


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the task, below /task. `inline`: its content is in the directory already."""

    path: str
    size_bytes: int
    sha256: str
    unpack: bool = False
    inline: bool = False


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The assignment as it was accepted. Zero resources mean: the node's default."""

    task_id: str
    attempt: int
    image: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    secret_names: tuple[str, ...] = ()
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    disk_bytes: int = 0
    processes: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    stop_grace_s: float = DEFAULT_STOP_GRACE_S
    priority: int = 0
    egress: bool = False
    inputs: tuple[InputSpec, ...] = ()
    requirements: tuple[str, ...] = ()
    output_globs: tuple[str, ...] = ()
    output_limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES
    log_limit_bytes: int = DEFAULT_LOG_LIMIT_BYTES
    labels: dict[str, str] = {}
    min_trust_level: int = 0
    accepted_unix_s: float = 0.0
    digest: str = ""  # of the assignment without the secrets' values: a repeat must have the same

    @property
    def key(self) -> TaskKey:
        return TaskKey(self.task_id, self.attempt)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an attempt; times are the wall clock's, durations seconds."""

    task_id: str
    attempt: int
    phase: TaskPhase
    exit_code: int = -1
    error: str = ""
    cause: str = ""
    accepted_unix_s: float = 0.0
    started_unix_s: float | None = None
    finished_unix_s: float = 0.0
    pull_s: float = 0.0
    prepare_s: float = 0.0
    run_s: float = 0.0
    cpu_s: float | None = None
    cpu_pct_average: float = 0.0
    memory_peak_bytes: int | None = None
    memory_pct_average: float = 0.0
    gpu_pct_average: float = 0.0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    block_read_bytes: int = 0
    block_written_bytes: int = 0
    image_digest: str = ""
    runtime: str = ""
    gpu_uuids: tuple[str, ...] = ()
    oom_kills: int = 0
    output_sha256: str = ""
    output_bytes: int = 0
    output_files: int = 0
    log_bytes_dropped: int = 0
    phases: tuple[PhaseAt, ...] = ()
    image: str = ""
    command: tuple[str, ...] = ()


class RecordError(ValueError):
    """A record in a task's directory can't be read."""


def write_record(path: Path, record: Spec | Report) -> None:
    """Durable and whole, or not there. Text that is not Unicode gets `?` in its place."""
    text = json.dumps(msgspec.to_builtins(record), indent=1, ensure_ascii=False)
    write_atomic(path, text.encode("utf-8", "replace"))


def read_spec(directory: Path) -> Spec:
    return _read(directory / SPEC, Spec)


def read_report(directory: Path) -> Report:
    return _read(directory / REPORT, Report)


def _read(path: Path, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError) as err:
        raise RecordError(f"{path}: {err}") from err


def held(tasks: Path) -> list[TaskKey]:
    """Every attempt whose acceptance is on disk, below `tasks`."""
    if not tasks.is_dir():
        return []
    keys = [TaskKey.parse(entry.name) for entry in tasks.iterdir()]
    return sorted(key for key in keys if key and (tasks / key.directory / SPEC).exists())
