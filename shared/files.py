"""Files that survive a crash: written aside, synced, renamed; and trees removed safely."""

import errno
import os
from itertools import islice
from pathlib import Path

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ASIDE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
BATCH = 50_000  # names of a directory that are held at once
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # it may pass
DEEPEST = 64  # a subtree below this depth is moved up first, so that no path or stack runs out


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, DIRECTORY_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int = 0o640) -> None:
    """Replace `path` with `data`: after a crash it holds the old content or the new, whole."""
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, ASIDE_FLAGS, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Delete `path` and all below it, whatever a task made of it: no link is followed, any mode,
    sticky directories and any depth. Needs CHOWN and DAC_OVERRIDE for another user's files."""
    try:
        descriptor = _open_directory(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:  # a file, or a link: O_DIRECTORY with O_NOFOLLOW says so
        path.unlink(missing_ok=True)
        return
    try:
        while _remove_entries(descriptor, descriptor, 0):
            pass  # what was too deep has been moved up: once more
    finally:
        os.close(descriptor)
    path.rmdir()


def _remove_entries(top: int, directory: int, depth: int) -> bool:
    """Empty one directory; True if a subtree was moved to `top` instead of deleted."""
    _make_ours(directory)
    moved, more = False, True
    while more:
        entries = _some_entries(directory)
        more = len(entries) == BATCH
        for name, is_directory in entries:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif depth >= DEEPEST:
                _move_up(name, directory, top)
                moved = True
            else:
                moved = _remove_directory(name, directory, top, depth) or moved
    return moved


def _some_entries(directory: int) -> list[tuple[str, bool]]:
    with os.scandir(directory) as entries:
        return [(e.name, e.is_dir(follow_symlinks=False)) for e in islice(entries, BATCH)]


def _move_up(name: str, directory: int, top: int) -> None:
    aside = f".deep-{os.urandom(8).hex()}"
    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=top)


def _remove_directory(name: str, directory: int, top: int, depth: int) -> bool:
    child = _open_directory(name, directory)
    try:
        moved = _remove_entries(top, child, depth + 1)
    finally:
        os.close(child)
    os.rmdir(name, dir_fd=directory)
    return moved


def _open_directory(name: str | Path, directory: int | None = None) -> int:
    """Opens it also where its owner, without DAC_OVERRIDE, has shut it to himself."""
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    except PermissionError:
        place = os.open(name, DIRECTORY_FLAGS | os.O_PATH, dir_fd=directory)
    try:
        Path(f"/proc/self/fd/{place}").chmod(0o700)
        return os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    finally:
        os.close(place)


def _make_ours(directory: int) -> None:
    """Take a directory over: in a sticky one only its owner may delete another's files."""
    if os.fstat(directory).st_uid != os.geteuid():
        os.fchown(directory, os.geteuid(), -1)
    os.fchmod(directory, 0o700)
