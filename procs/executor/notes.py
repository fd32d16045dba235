"""The executor's own notes in an attempt's directory, and how the keeper's record is read there.

What it was given, and that it was told to end: both are on disk before they are acted on.
"""

import logging
import threading
from pathlib import Path

import msgspec

from procs.executor.attempt import Attempt
from procs.executor.quota import Grant
from procs.executor.run_record import RunRecord, parse_run
from procs.executor.verdict import Stop
from shared.files import write_atomic
from shared.taskdir import RUN

log = logging.getLogger("executor")

STOP = "stop"  # that we told it to end, and why
GRANT = "grant"  # what it was given: a later life may know less of the node's quota
MOST_RECORD_BYTES = 65536
_keeping = threading.Lock()  # its stop and its collection may both have the same to write


def read_run(directory: Path) -> RunRecord:
    """The run record as far as it is written."""
    try:
        with (directory / RUN).open("rb") as file:
            return parse_run(file.read(MOST_RECORD_BYTES))
    except FileNotFoundError:
        return RunRecord(None, None, None)


def read_stop(directory: Path) -> Stop | None:
    try:
        return msgspec.json.decode((directory / STOP).read_bytes(), type=Stop)
    except FileNotFoundError:
        return None
    except ValueError as err:
        log.error("%s can't be read: %s", directory / STOP, err)
        return None


def read_grant(directory: Path) -> Grant | None:
    try:
        return msgspec.json.decode((directory / GRANT).read_bytes(), type=Grant)
    except (FileNotFoundError, ValueError):
        return None


def write_grant(directory: Path, grant: Grant) -> None:
    write_atomic(directory / GRANT, msgspec.json.encode(grant))


def write_stop(directory: Path, stop: Stop) -> None:
    write_atomic(directory / STOP, msgspec.json.encode(stop))


def keep_stop(attempt: Attempt) -> None:
    """Durable, if the disk has room; else a life after this one may have to decide again."""
    if attempt.stop is None:
        return
    with _keeping:
        try:
            if read_stop(attempt.directory) is None:
                write_stop(attempt.directory, attempt.stop)
        except OSError as err:
            log.error("%s: why it is stopped was not written: %s", attempt.key.directory, err)
