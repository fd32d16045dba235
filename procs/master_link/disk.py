"""master_link's share of the task directories: acceptance, fetched inputs, the result, keeping.

Everything here blocks (fsync): call in a thread. Spec and result are durable before they are
spoken of; a directory without a spec was never accepted.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from procs.master_link.core import Attempt, Stage
from shared.files import remove_tree, sync_directory, write_atomic
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import (
    KEPT,
    REPORT,
    RESULT,
    SECRETS,
    SPEC,
    TASKS,
    RecordError,
    Spec,
    TaskKey,
    held,
    read_report,
    read_spec,
    write_record,
)

BLOBS, PART, MISSING = "blobs", ".part", ".missing"
BLOCK_BYTES = 512  # what st_blocks counts
FILE_MODE, SECRET_MODE = 0o640, 0o600

log = logging.getLogger("master_link")


class Disk:
    """The directories below a home."""

    def __init__(self, home: Path) -> None:
        self.tasks = home / TASKS
        self.kept = home / KEPT
        self.kept.mkdir(mode=0o750, exist_ok=True)

    # -------------------------------------------------------------- at start

    def accepted(self) -> dict[TaskKey, Spec]:
        """Every attempt whose acceptance is on disk; what was never accepted is removed."""
        self._remove_unaccepted()
        specs: dict[TaskKey, Spec] = {}
        for key in held(self.tasks):
            try:
                specs[key] = read_spec(self.tasks / key.directory)
            except RecordError as err:
                log.error("%s can't be read, its task is left alone: %s", key.directory, err)
        return specs

    def _remove_unaccepted(self) -> None:
        for path in self.tasks.iterdir():
            if TaskKey.parse(path.name) and not (path / SPEC).exists():
                _remove(path)

    def kept_keys(self) -> set[TaskKey]:
        found = (TaskKey.parse(path.name) for path in self.kept.iterdir())
        return {key for key in found if key is not None}

    def kept_bytes(self, key: TaskKey) -> int:
        return _size_bytes(self.kept / key.directory)

    def adopt(self, key: TaskKey) -> Attempt:
        """A kept attempt of which the database knows nothing."""
        directory = self.kept / key.directory
        attempt = Attempt(key, stage=Stage.KEPT, delivered_unix_s=directory.stat().st_mtime)
        attempt.size_bytes = self.kept_bytes(key)
        try:
            attempt.digest = read_spec(directory).digest
            attempt.final = read_report(directory).phase
        except RecordError as err:
            log.warning("of a kept task: %s", err)
        return attempt

    # -------------------------------------------------------------- acceptance

    def commit(self, spec: Spec, request: pb.TaskAssignmentRequest) -> None:
        """The assignment, durable; the spec last. OSError: nothing was accepted."""
        directory = self.tasks / spec.key.directory
        try:
            remove_tree(directory)  # of an acceptance that was cut off
            directory.mkdir(mode=0o750)
            self._write_blobs(directory, spec, request)
            _write_secrets(directory, request.secrets)
            write_record(directory / SPEC, spec)
            sync_directory(self.tasks)
        except OSError:
            _remove(directory)
            raise

    def _write_blobs(self, directory: Path, spec: Spec, request: pb.TaskAssignmentRequest) -> None:
        if not spec.inputs:
            return
        blobs = directory / BLOBS
        blobs.mkdir(mode=0o750)
        for index, item in enumerate(spec.inputs):
            if item.inline:
                _write(blobs / str(index), request.inputs[index].inline, FILE_MODE)
        sync_directory(blobs)

    # -------------------------------------------------------------- the result

    def where(self, key: TaskKey) -> Path:
        """The attempt's directory, held or kept."""
        directory = self.tasks / key.directory
        return directory if directory.exists() else self.kept / key.directory

    def stored_result(self, key: TaskKey) -> bytes | None:
        try:
            return (self.where(key) / RESULT).read_bytes()
        except FileNotFoundError:
            return None

    def store_result(self, key: TaskKey, message: bytes) -> None:
        write_atomic(self.where(key) / RESULT, message)

    def is_complete(self, key: TaskKey) -> bool:
        """What was delivered is still there."""
        return (self.where(key) / REPORT).exists()

    # -------------------------------------------------------------- keeping

    def put_away(self, key: TaskKey, is_owed: bool) -> int | None:
        """Keep it, its size; None: forgotten before its result, nobody will ask for it."""
        if is_owed and self.stored_result(key) is None:
            self.discard(key)
            return None
        return self.keep(key)

    def keep(self, key: TaskKey) -> int:
        """Move a delivered attempt's directory to `kept/`; its size."""
        directory, kept = self.tasks / key.directory, self.kept / key.directory
        if directory.exists():
            (directory / SECRETS).unlink(missing_ok=True)
            remove_tree(kept)
            directory.rename(kept)  # not synced: what a crash undoes is done again
        return _size_bytes(kept)

    def discard(self, key: TaskKey) -> None:
        """Remove an attempt's directories, for ever; the spec first, then it is no attempt."""
        (self.tasks / key.directory / SPEC).unlink(missing_ok=True)
        _remove(self.tasks / key.directory)
        _remove(self.kept / key.directory)


def _remove(directory: Path) -> None:
    try:
        remove_tree(directory)
    except OSError as err:
        log.warning("%s can't be removed: %s", directory, err)


def _write(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_secrets(directory: Path, secrets: Mapping[str, str]) -> None:
    if secrets:
        _write(directory / SECRETS, json.dumps(dict(secrets)).encode(), SECRET_MODE)


def _size_bytes(directory: Path) -> int:
    return sum(
        (Path(folder) / name).lstat().st_blocks * BLOCK_BYTES
        for folder, _, names in os.walk(directory)
        for name in names
    )


# ------------------------------------------------------------------ inputs that are fetched


class InputFile:
    """`blobs/<index>` while it comes in, as `<index>.part`."""

    def __init__(self, directory: Path, index: int, size_bytes: int) -> None:
        self.path = directory / BLOBS / str(index)
        self._part = self.path.with_name(f"{index}{PART}")
        self._missing = self.path.with_name(f"{index}{MISSING}")
        self._size_bytes = size_bytes

    @property
    def is_settled(self) -> bool:
        return self.path.exists() or self._missing.exists()

    def stored_bytes(self) -> int:
        """What has come so far: go on from there."""
        try:
            stored = self._part.stat().st_size
        except FileNotFoundError:
            return 0
        if stored > self._size_bytes:
            self._part.unlink()
            return 0
        return stored

    def append(self, offset: int, data: bytes) -> bool:
        """False: this would be more than the assignment announced."""
        if offset + len(data) > self._size_bytes:
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        with os.fdopen(os.open(self._part, flags, FILE_MODE), "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
        return True

    def finish(self) -> None:
        descriptor = os.open(self._part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._part.rename(self.path)
        sync_directory(self.path.parent)

    def give_up(self, reason: str) -> None:
        """The master has it not: the executor ends the task with this sentence."""
        self._part.unlink(missing_ok=True)
        write_atomic(self._missing, reason.encode())
