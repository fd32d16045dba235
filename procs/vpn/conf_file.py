"""wg0.conf on the disk: read only if it is nobody else's to read, replaced as a whole. Blocks."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from procs.vpn.conf import MOST_BYTES, Conf, ConfError, parse_bytes
from shared.files import sync_directory, write_atomic

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not hold us
OTHERS = 0o077
MODE = 0o600


class ConfFileError(Exception):
    """The file can't be used, or not be written; the text says why and what to do."""


@dataclass(frozen=True)
class Stamp:
    """What changes when the file does."""

    inode: int
    size: int
    mode: int
    owner: int
    changed_ns: int


@dataclass(frozen=True)
class ConfFile:
    """`conf` None: there is no such file, or `problem` says why it is of no use."""

    conf: Conf | None = None
    problem: str = ""
    stamp: Stamp | None = None


ABSENT = ConfFile()


def read(path: Path, before: ConfFile) -> ConfFile:
    """`before` where nothing has changed."""
    try:
        descriptor = os.open(path, FLAGS)
    except FileNotFoundError:
        return ABSENT
    except OSError as err:
        return ConfFile(problem=f"{path} can't be read: {err.strerror}")
    try:
        stamp = _stamp(os.fstat(descriptor))
        if stamp == before.stamp:
            return before
        problem = _wrong(path, stamp)
        if problem:
            return ConfFile(None, problem, stamp)
        return ConfFile(parse_bytes(os.read(descriptor, MOST_BYTES + 1)), "", stamp)
    except ConfError as err:
        return ConfFile(None, f"{path}, {err}", stamp)
    except OSError as err:
        return ConfFile(None, f"{path} can't be read: {err.strerror}", None)
    finally:
        os.close(descriptor)


def write(path: Path, conf: Conf, instead_of: ConfFile) -> ConfFile:
    """Only in the place of what was read: a file that came since is its owner's."""
    if read(path, instead_of) != instead_of:
        raise ConfFileError(f"{path} was changed at this moment: it stays")
    try:
        write_atomic(path, conf.text.encode(), MODE)
    except OSError as err:
        raise ConfFileError(f"{path} can't be written: {err.strerror}") from err
    return read(path, ABSENT)


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as err:
        raise ConfFileError(f"{path} can't be removed: {err.strerror}") from err


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_ino, found.st_size, found.st_mode, found.st_uid, found.st_ctime_ns)


def _wrong(path: Path, stamp: Stamp) -> str:
    if not stat.S_ISREG(stamp.mode):
        return f"{path} is not a file"
    if stamp.mode & OTHERS:
        mode = stat.S_IMODE(stamp.mode)
        return f"{path} may be read or written by others (mode {mode:04o}): chmod 600 {path}"
    if stamp.owner not in (0, os.geteuid()):
        return f"{path} belongs to another user than the worker"
    return ""
