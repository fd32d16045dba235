"""What the master keeps as files: inputs by digest, output archives, secrets.

`inputs/<sha256>`; `outputs/<task>.<attempt>.<sha256>.tar.gz`, there only once its digest was
verified, and `….part` until then; `secrets/<task>` (0600), gone as soon as the task has ended.
Nothing here decides who may write what.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Container, Iterable
from pathlib import Path

from procs.master.task_records import Key
from shared.files import sync_directory, write_atomic

CHUNK_BYTES = 256 * 1024


class FilesError(Exception):
    """The master's data directory cannot be used."""


class DigestMismatch(Exception):
    """The content is not what its digest says."""


class Files:
    """The master's data directory, locked for this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._inputs, self._outputs = directory / "inputs", directory / "outputs"
        self._secrets = directory / "secrets"
        try:
            for path in (directory, self._inputs, self._outputs, self._secrets):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise FilesError(f"cannot use {directory}: {err.strerror}") from err
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            os.close(self._lock)
            raise FilesError(f"another master runs on {directory}") from err

    def close(self) -> None:
        os.close(self._lock)

    # -------------------------------------------------------------- inputs

    def has_input(self, sha256: str) -> bool:
        """True also means: it stays for the task that is about to name it."""
        try:
            os.utime(self._input(sha256))
        except FileNotFoundError:
            return False
        return True

    def drop_unused(self, named: Container[str], before_unix_s: float) -> int:
        """Delete old inputs that are not named, and old halves of files."""
        inputs = (path for path in self._inputs.iterdir() if path.name not in named)
        halves = self._outputs.glob("*.part")
        old = [p for p in (*inputs, *halves) if p.stat().st_mtime < before_unix_s]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def input_size(self, sha256: str) -> int | None:
        try:
            return self._input(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def whole_input(self, sha256: str) -> bytes:
        return self._input(sha256).read_bytes()

    def open_upload(self, sha256: str) -> "InputUpload":
        return InputUpload(self._input(sha256), sha256)

    def input_bytes(self, sha256: str, offset: int) -> bytes | None:
        """The next chunk of an input; empty at its end, None where it is not there."""
        return _chunk(self._input(sha256), offset)

    def _input(self, sha256: str) -> Path:
        return self._inputs / sha256

    # -------------------------------------------------------------- outputs

    def output(self, key: Key, sha256: bytes) -> "Output":
        return Output(self._outputs / f"{key}.{sha256.hex()}.tar.gz", sha256)

    # -------------------------------------------------------------- secrets

    def keep_secrets(self, task_id: str, secrets: dict[str, str]) -> None:
        if secrets:
            write_atomic(self._secrets / task_id, json.dumps(secrets).encode(), 0o600)

    def secrets(self, task_id: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self._secrets / task_id).read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def drop_secrets(self, task_id: str) -> None:
        (self._secrets / task_id).unlink(missing_ok=True)

    def drop_secrets_but(self, task_ids: Iterable[str]) -> None:
        """At the start: what a crash has left of tasks that have ended, or never began."""
        wanted = set(task_ids)
        for path in self._secrets.iterdir():
            if path.name not in wanted:
                path.unlink()


class InputUpload:
    """An input on its way in; it has its name only once its digest was verified."""

    def __init__(self, path: Path, sha256: str) -> None:
        self._path, self._sha256 = path, sha256
        self._aside = path.with_name(f".{sha256}.{os.urandom(6).hex()}")
        self._digest = hashlib.sha256()
        self._file = self._aside.open("xb")

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def keep(self) -> None:
        if self._digest.hexdigest() != self._sha256:
            raise DigestMismatch(f"the content's SHA-256 is {self._digest.hexdigest()}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._aside.replace(self._path)
        sync_directory(self._path.parent)

    def close(self) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)


class Output:
    """An output archive, whole or in part."""

    def __init__(self, path: Path, sha256: bytes) -> None:
        self.path, self._sha256 = path, sha256
        self._part = path.with_name(path.name + ".part")

    def complete(self) -> bool:
        return self.path.exists()

    def stored_bytes(self) -> int:
        for path in (self.path, self._part):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def open_upload(self) -> "OutputUpload":
        """Go on from what is stored. One at a time."""
        return OutputUpload(self.path, self._part, self._sha256)


class OutputUpload:
    """An archive on its way in. Its digest is reckoned on the way where it came in one go."""

    def __init__(self, path: Path, part: Path, sha256: bytes) -> None:
        self._path, self._part, self._sha256 = path, part, sha256
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(part, flags, 0o600)
        self.stored_bytes = os.fstat(self._file).st_size
        self._digest = hashlib.sha256() if self.stored_bytes == 0 else None

    def write(self, offset: int, data: bytes, total_bytes: int) -> bool:
        """Store the next bytes; False: they do not follow what is stored, or are too many."""
        if offset > self.stored_bytes or offset + len(data) > total_bytes:
            return False
        fresh = memoryview(data)[self.stored_bytes - offset :]
        while fresh:
            count = os.write(self._file, fresh)
            if self._digest is not None:
                self._digest.update(fresh[:count])
            self.stored_bytes += count
            fresh = fresh[count:]
        return True

    def finish(self) -> bool:
        """All bytes are there: give it its name if the digest holds, else start from nothing."""
        os.fsync(self._file)
        if self._digest is None:
            with os.fdopen(os.dup(self._file), "rb") as file:
                file.seek(0)
                self._digest = hashlib.file_digest(file, "sha256")
        if self._digest.digest() != self._sha256:
            self._part.unlink(missing_ok=True)
            return False
        self._part.replace(self._path)
        sync_directory(self._path.parent)
        return True

    def close(self) -> None:
        os.close(self._file)


def _chunk(path: Path, offset: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return None
