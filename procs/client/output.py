"""Puts a task's output into a directory. The archive is a stranger's: no entry leaves it.

Directories are entered one by one without following a link, files are written aside and renamed;
only directories and plain files are made, without set-id bits.
"""

import contextlib
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from procs.client.core import Malformed, entry_parts

COPY_BYTES = 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OutputError(Exception):
    """The output is not what the task's result says, or cannot be written."""


def download(chunks: Iterable[bytes], sha256: str, target: IO[bytes]) -> None:
    """Write the archive to `target` and check its digest."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        target.write(chunk)
    if digest.hexdigest() != sha256:
        raise OutputError("the output that the master sent is not the one of the task's result")
    target.seek(0)


def extract(archive: IO[bytes], directory: Path) -> int:
    """Unpack below `directory`; returns how many files were written."""
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = 0
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for entry in tar:
                files += _extract_entry(tar, entry, top)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as err:
        raise OutputError(f"the output is a broken archive: {err}") from err
    except Malformed as err:
        raise OutputError(str(err)) from err
    except OSError as err:
        raise OutputError(f"cannot write the output to {directory}: {err.strerror}") from err
    finally:
        os.close(top)
    return files


def _extract_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo, top: int) -> int:
    parts = entry_parts(entry.name)
    if entry.isdir():
        os.close(_enter(top, parts))
        return 0
    content = tar.extractfile(entry) if entry.isreg() else None
    if content is None or not parts:
        return 0
    parent = _enter(top, parts[:-1])
    try:
        _write(parent, parts[-1], content, entry.mode)
    finally:
        os.close(parent)
    return 1


def _enter(top: int, parts: list[str]) -> int:
    """The directory at `parts` below `top`, made where it is missing."""
    here = os.dup(top)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):  # no directory, or a link: open says so
                os.mkdir(part, dir_fd=here)
            following = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = following
    return here


def _write(parent: int, name: str, content: IO[bytes], mode: int) -> None:
    aside = f".hivemind-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(aside, flags, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            while data := content.read(COPY_BYTES):
                file.write(data)
            os.fchmod(file.fileno(), mode & 0o777)
        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:  # also when interrupted: nothing half-written stays
        os.unlink(aside, dir_fd=parent)
        raise
