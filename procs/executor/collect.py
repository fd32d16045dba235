"""Output: what a task left in `output/`, measured and packed.

The tree is hostile. It is walked by directory descriptors; only regular files are taken; no
link is followed; hard links become copies; set-id bits are stripped.
"""

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared.files import DIRECTORY_FLAGS, sync_directory
from shared.taskdir import ARCHIVE

DEEPEST = 200  # a deeper tree holds one descriptor a level and names no tar reader takes
SMALLEST_ENTRY_BYTES = 4096  # what an entry costs even when empty
BLOCK_BYTES = 512
COMPRESSION = 1  # the link is slower than any level; the task's owner waits
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TooLargeError(Exception):
    """The output is past its limit."""


@dataclass(frozen=True)
class Packed:
    """The archive; an empty digest: there was no output."""

    sha256: str = ""
    size_bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class Found:
    """One entry of the tree: its path below the root, its directory's descriptor, its stat."""

    path: str
    directory: int
    name: str
    status: os.stat_result


def walk(root: Path) -> Iterator[Found]:
    """Every entry below root that is not a directory, and each directory itself, without a link
    followed; what is deeper than DEEPEST is left out. Valid only until the next is taken."""
    try:
        descriptor = os.open(root, DIRECTORY_FLAGS)
    except FileNotFoundError:
        return
    try:
        yield from _walk(descriptor, "", 0)
    finally:
        os.close(descriptor)


def _walk(directory: int, prefix: str, depth: int) -> Iterator[Found]:
    for name in sorted(os.listdir(directory)):
        try:
            status = os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            continue  # a running task deletes while we look
        yield Found(prefix + name, directory, name, status)
        if stat.S_ISDIR(status.st_mode) and depth < DEEPEST:
            try:
                child = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                yield from _walk(child, f"{prefix}{name}/", depth + 1)
            finally:
                os.close(child)


def disk_use_bytes(root: Path) -> int:
    """What a tree costs: for each entry the most of size, blocks and 4 KiB."""
    return sum(
        max(f.status.st_size, f.status.st_blocks * BLOCK_BYTES, SMALLEST_ENTRY_BYTES)
        for f in walk(root)
    )


def wanted_by(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Takes the paths that the patterns name: `*` within a folder's name, `**` for folders; a
    folder's name takes all below it. No patterns: everything. Patterns and names are both a
    stranger's: the time is bounded by their lengths' product, as no `.*` expression's is."""
    patterns = [[_name(part) for part in glob.strip("/").split("/")] for glob in globs]

    def wanted(path: str) -> bool:
        names = path.split("/")
        return not patterns or any(_matches(pattern, names) for pattern in patterns)

    return wanted


def _name(part: str) -> re.Pattern[str] | None:
    """One name of a pattern; None: any folders. The groups are atomic: each `*` takes as little
    as it can and is never tried again, which for one name is enough."""
    if part == "**":
        return None
    first, *others = (re.escape(p).replace(r"\?", ".") for p in re.split(r"\*+", part))
    if not others:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{other})" for other in others[:-1])
    return re.compile(f"{first}{middle}.*{others[-1]}", re.DOTALL)


def _matches(pattern: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Does it name the path, or a folder above it? `at`: where in the pattern one may stand."""
    at = _with_folders({0}, pattern)
    for name in names:
        if len(pattern) in at:
            return True
        steps = {
            index if part is None else index + 1
            for index, part in ((i, pattern[i]) for i in at)
            if part is None or part.fullmatch(name)
        }
        at = _with_folders(steps, pattern)
    return len(pattern) in at


def _with_folders(at: set[int], pattern: list[re.Pattern[str] | None]) -> set[int]:
    """`**` may stand for none."""
    reached = set(at)
    for index in range(len(pattern)):
        if index in reached and pattern[index] is None:
            reached.add(index + 1)
    return reached


def pack(directory: Path, output: Path, globs: tuple[str, ...], limit_bytes: int) -> Packed:
    """Write `output.tar.gz` into `directory`, durable; TooLargeError past the limit."""
    wanted = wanted_by(globs)
    chosen = [f for f in walk(output) if stat.S_ISREG(f.status.st_mode) and wanted(f.path)]
    if sum(f.status.st_size for f in chosen) > limit_bytes:
        raise TooLargeError(f"the output is larger than output_limit_bytes, {limit_bytes}")
    if not chosen:
        return Packed()
    aside = directory / f".{ARCHIVE}.new"
    try:
        with aside.open("w+b") as file:
            files = _write(file, output, wanted)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
        aside.replace(directory / ARCHIVE)
    finally:
        aside.unlink(missing_ok=True)  # of a full disk: the report needs the room
    sync_directory(directory)
    return Packed(digest, size, files)


def _write(file: IO[bytes], output: Path, wanted: Callable[[str], bool]) -> int:
    files = 0
    with tarfile.open(
        fileobj=file, mode="w:gz", compresslevel=COMPRESSION, format=tarfile.PAX_FORMAT
    ) as archive:
        for found in walk(output):
            if stat.S_ISREG(found.status.st_mode) and wanted(found.path):
                files += _add(archive, found)
    return files


def _add(archive: tarfile.TarFile, found: Found) -> int:
    descriptor = os.open(found.name, FILE_FLAGS, dir_fd=found.directory)
    with os.fdopen(descriptor, "rb") as content:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return 0
        info = tarfile.TarInfo(found.path)
        info.size = status.st_size
        info.mode = stat.S_IMODE(status.st_mode) & 0o777
        info.mtime = int(status.st_mtime)
        archive.addfile(info, content)
    return 1
