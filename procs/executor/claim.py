"""What the host lays out for the keeper, and the settling of a start that nobody answered.

`claim/` is mounted into the container; `run` and `log` in it are links to the task's own. Whoever
takes `claim/run` away owns the start: the keeper to run the command, the host to know that it
never runs. `start` lies in `claim/` alone: it holds the secrets, and the keeper unlinks it.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.files import remove_tree, sync_directory
from shared.limits import encoded, start_fault
from shared.taskdir import CLAIM, LOG, RUN

START = "start"
START_MAGIC = b"hivemind-start 1"
RUN_BYTES = 4096  # set aside, so that a full disk can't keep the end from being written
MOST_BYTES = 10**18 - 1  # the keeper reads 18 digits
SHARED_MODE = 0o664  # ours to read, the task's group to write; the directories keep others out
START_MODE = 0o440
SETTLED = ".settled"  # where the host takes claim/run to
FALLOC_FL_KEEP_SIZE = 1
NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS)  # then the end is written if there is room


_settling = threading.Lock()  # two that settle at once would take it from each other


class AlreadyRanError(Exception):
    """The attempt's record or log is not empty: it ran, and must not run again."""


@dataclass(frozen=True)
class Start:
    """What the keeper is to run; the environment holds the secrets."""

    argv: tuple[str | bytes, ...]
    environment: Mapping[str, str]
    log_limit_bytes: int
    file_limit_bytes: int

    def __post_init__(self) -> None:
        fault = start_fault(self.argv, self.environment)
        if fault is not None:
            raise ValueError(fault)
        for name in ("log_limit_bytes", "file_limit_bytes"):
            if not 0 <= getattr(self, name) <= MOST_BYTES:
                raise ValueError(f"{name}: {getattr(self, name)} is not in 0..{MOST_BYTES}")

    def encode(self) -> bytes:
        """NUL-terminated strings: magic, limits, counts, argv, environment."""
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        numbers = (
            self.log_limit_bytes,
            self.file_limit_bytes,
            len(self.argv),
            len(environment),
        )
        strings = [START_MAGIC, *map(str, numbers), *self.argv, *environment]
        return b"".join(encoded(string) + b"\0" for string in strings)


def write_claim(task_dir: Path, start: Start, uid: int, gid: int) -> None:
    """New `log`, `run` and `claim/` for the task's user, durable. Only for an attempt that never
    ran and whose container is gone: the keeper of an older claim must not be alive."""
    for name in (RUN, LOG):
        if _size(task_dir / name):
            raise AlreadyRanError(f"{task_dir / name} is not empty")
    claim = task_dir / CLAIM
    remove_tree(claim)
    for name, room in ((RUN, RUN_BYTES), (LOG, 0)):
        (task_dir / name).unlink(missing_ok=True)
        _create(task_dir / name, b"", SHARED_MODE, gid, room)
    claim.mkdir(mode=0o700)
    for name in (RUN, LOG):
        (claim / name).hardlink_to(task_dir / name)
    _create(claim / START, start.encode(), START_MODE, gid)
    os.chown(claim, uid, gid)
    sync_directory(claim)
    sync_directory(task_dir)


def settle(task_dir: Path) -> bool:
    """True: the command never ran and never will. False: a keeper has claimed it, wait for its
    word or its death. What is taken is looked at afterwards: the command could have put a file
    of its own there."""
    with _settling:
        return _take_back(task_dir)


def _take_back(task_dir: Path) -> bool:
    claim, taken = task_dir / CLAIM, task_dir / SETTLED
    remove_tree(taken)
    try:
        (claim / RUN).rename(taken)
    except FileNotFoundError:
        return False
    ours = _is_same(taken, task_dir / RUN)
    remove_tree(taken)
    sync_directory(claim)
    return ours


def seal(task_dir: Path) -> None:
    """Once `started` is on record nothing needs `claim/`: removed, the command can't fill our
    disk through it, and no second start of the container finds what it mounts."""
    remove_tree(task_dir / CLAIM)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _create(path: Path, content: bytes, mode: int, gid: int, room: int = 0) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchown(file.fileno(), -1, gid)
        os.fchmod(file.fileno(), mode)
        if room:
            _set_aside(file.fileno(), room)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _set_aside(descriptor: int, size: int) -> None:
    """Blocks without a size, which os.posix_fallocate can't do: an empty record stays empty."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset, length = ctypes.c_int64(0), ctypes.c_int64(size)
    if libc.fallocate64(descriptor, FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return
    number = ctypes.get_errno()
    if number not in NO_FALLOCATE:
        raise OSError(number, os.strerror(number))
