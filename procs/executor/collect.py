"""Output: what a task left in `output/`, measured and packed.

The tree is hostile (see walk.py). Only regular files are taken, at any depth; hard links become
copies; set-id bits are stripped. What can't be packed whole is not packed at all.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from procs.executor.globs import Globs
from procs.executor.walk import MOST_ENTRIES, Found, TooManyEntriesError, walk
from shared import sentences
from shared.files import sync_directory
from shared.messages import TaskPhase
from shared.sentences import Said
from shared.taskdir import ARCHIVE

LONGEST_PATH_BYTES = 4095  # Linux's own limit: nobody could unpack a longer one
SMALLEST_ENTRY_BYTES = 4096  # what an entry costs even when empty
BLOCK_BYTES = 512
COMPRESSION = 1  # the link is slower than any level; the task's owner waits
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TooLargeError(Exception):
    """The output is past its limit."""

    def __init__(self, said: Said[TaskPhase]) -> None:
        super().__init__(said.text)
        self.said = said


@dataclass(frozen=True)
class Packed:
    """The archive; an empty digest: there was no output."""

    sha256: str = ""
    size_bytes: int = 0
    files: int = 0


def disk_use_bytes(root: Path, enough_bytes: int | None = None) -> int:
    """What a tree costs: for each entry the most of size, blocks and 4 KiB. Past `enough_bytes`
    nothing more is counted; TooLargeError where there are more entries than can be looked at,
    MovedError where a task keeps them from being looked at."""
    used = 0
    try:
        for found in walk(root, whole=True):
            used += entry_bytes(found.status)
            if enough_bytes is not None and used > enough_bytes:
                break
    except TooManyEntriesError as err:
        raise TooLargeError(sentences.OUTPUT_TOO_MANY.say(most=MOST_ENTRIES)) from err
    return used


def entry_bytes(status: os.stat_result) -> int:
    return max(status.st_size, status.st_blocks * BLOCK_BYTES, SMALLEST_ENTRY_BYTES)


def pack(directory: Path, output: Path, globs: tuple[str, ...], limit_bytes: int) -> Packed:
    """Write `output.tar.gz` into `directory`, durable; TooLargeError past the limit."""
    size = 0
    empty = True
    for _, found in _wanted(output, globs):
        empty = False
        size += found.status.st_size
        if size > limit_bytes:
            raise TooLargeError(sentences.OUTPUT_TOO_LARGE.say(limit=limit_bytes))
    if empty:
        return Packed()
    aside = directory / f".{ARCHIVE}.new"
    try:
        with aside.open("w+b") as file:
            files = _write(file, output, globs)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            archive_bytes = file.seek(0, os.SEEK_END)
        aside.replace(directory / ARCHIVE)
    finally:
        aside.unlink(missing_ok=True)  # of a full disk: the report needs the room
    sync_directory(directory)
    return Packed(digest, archive_bytes, files)


def _wanted(output: Path, globs: tuple[str, ...]) -> Iterator[tuple[str, Found]]:
    """The regular files to pack, with their paths."""
    patterns = Globs(globs)
    names: list[str] = []
    reached = [patterns.root]
    try:
        for found in walk(output, whole=True):
            del names[found.depth :], reached[found.depth + 1 :]
            here = patterns.step(reached[-1], found.name)
            if found.is_directory:
                names.append(found.name)
                reached.append(here)
            elif found.is_file and patterns.takes(here):
                yield _path(names, found.name), found
    except TooManyEntriesError as err:
        raise TooLargeError(sentences.OUTPUT_TOO_MANY.say(most=MOST_ENTRIES)) from err


def _path(folders: list[str], name: str) -> str:
    path = "/".join((*folders, name))
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        said = sentences.OUTPUT_PATH_TOO_LONG.say(most=LONGEST_PATH_BYTES, name=name[-80:])
        raise TooLargeError(said)
    return path


def _write(file: IO[bytes], output: Path, globs: tuple[str, ...]) -> int:
    files = 0
    with tarfile.open(
        fileobj=file, mode="w:gz", compresslevel=COMPRESSION, format=tarfile.PAX_FORMAT
    ) as archive:
        for path, found in _wanted(output, globs):
            files += _add(archive, path, found)
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps each header
    return files


def _add(archive: tarfile.TarFile, path: str, found: Found) -> int:
    descriptor = os.open(found.name, FILE_FLAGS, dir_fd=found.directory)
    with os.fdopen(descriptor, "rb") as content:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return 0
        info = tarfile.TarInfo(path)
        info.size = status.st_size
        info.mode = stat.S_IMODE(status.st_mode) & 0o777
        info.mtime = int(status.st_mtime)
        archive.addfile(info, content)
    return 1
