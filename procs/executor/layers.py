"""Installed requirements on disk, each a read-only folder that any number of tasks may mount.

`layers/<name>/` holds `site/` and `layer.json`. It is made aside in `.new-…` and renamed, so that
what has its name is whole; its content is held to the recorded digest once in each life. Safe in
any thread. What fills a layer is installs.py's to know.
"""

import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from procs.executor.collect import FILE_FLAGS, entry_bytes
from procs.executor.walk import Found, TooManyEntriesError, walk
from shared.files import DIRECTORY_FLAGS, remove_tree, sync_directory, write_atomic
from shared.taskdir import GIB, LAYERS, SITE, TaskKey

log = logging.getLogger("executor")

RECORD = "layer.json"
FORMAT = 1  # a change of what a layer holds makes all older ones another's
MOST_BYTES = 20 * GIB  # of all layers; the least used go first
MOST_DISK_SHARE = 0.1  # … or of the disk, whichever is less
FRESH_S = 600.0  # one that was just made is not in use yet, however large it is
NEW, OLD = ".new-", ".old-"  # being made; being removed
NAME_CHARACTERS = 32
FILE_MODE, PROGRAM_MODE = 0o444, 0o555
SET_ID = stat.S_ISUID | stat.S_ISGID


class LayerError(Exception):
    """What was installed can't be a layer; the text says why."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """`layer.json`. The file's own time is the layer's last use."""

    requirements: tuple[str, ...]
    image_digest: str
    sha256: str
    size_bytes: int
    files: int
    created_unix_s: float


@dataclass(frozen=True)
class Content:
    """A tree: its digest, what it costs on disk, its entries."""

    sha256: str
    size_bytes: int
    files: int


def layer_name(requirements: tuple[str, ...], image_digest: str) -> str:
    """`requirements` are normalised; an image's digest stands for its Python and platform."""
    known_by = json.dumps([FORMAT, image_digest, requirements])
    return hashlib.sha256(known_by.encode()).hexdigest()[:NAME_CHARACTERS]


class Layers:
    """Those of one home, and which attempt uses which."""

    def __init__(self, home: Path) -> None:
        self._root = home / LAYERS
        self._root.mkdir(mode=0o750, exist_ok=True)
        self._left = [p for p in self._root.iterdir() if p.name.startswith((NEW, OLD))]
        self._users: dict[TaskKey, str] = {}
        self._aside: dict[Path, set[TaskKey]] = {}  # broken ones, until nobody has them mounted
        self._verified: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self._looking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    # -------------------------------------------------------------- use

    def hold(self, name: str, key: TaskKey) -> bool:
        """Is it here and whole? Then it stays until `release`. A broken one is removed."""
        with self._lock:
            self._users[key] = name
        if self._is_whole(name):
            os.utime(self._root / name / RECORD)
            return True
        self.release(key)
        return False

    def adopt(self, name: str, key: TaskKey) -> None:
        """An attempt of an earlier life has it mounted."""
        with self._lock:
            self._users[key] = name

    def release(self, key: TaskKey) -> None:
        with self._lock:
            self._users.pop(key, None)
            for users in self._aside.values():
                users.discard(key)
            free = [aside for aside, users in self._aside.items() if not users]
            for aside in free:
                del self._aside[aside]
        for aside in free:
            remove_tree(aside)

    def _is_whole(self, name: str) -> bool:
        with self._lock:
            looking = self._looking[name]
        with looking:  # one look for all who ask at once
            place = self._root / name
            if not place.exists():
                return False
            fault = self._fault(name)
            if fault:
                log.error("layer %s is broken, and will be made anew: %s", name, fault)
                self._remove(place)
        return not fault

    def _fault(self, name: str) -> str:
        """What is wrong with it; its content is read once in each life."""
        try:
            layer, mark = self._read(name), _mark(self._root / name)
            if self._verified.get(name) == mark:
                return ""
            found = _content(self._root / name / SITE)
        except (OSError, ValueError, LayerError) as err:
            return str(err)
        if found.sha256 != layer.sha256:
            return "its content is not what was installed"
        self._verified[name] = mark
        return ""

    def _read(self, name: str) -> Layer:
        return msgspec.json.decode((self._root / name / RECORD).read_bytes(), type=Layer)

    # -------------------------------------------------------------- make

    def begin(self, name: str) -> Path:
        """An empty folder in which it is made."""
        build = self._root / f"{NEW}{name}-{os.urandom(4).hex()}"
        build.mkdir(mode=0o750)
        return build

    def finish(
        self, build: Path, installed: Path, requirements: tuple[str, ...], image_digest: str
    ) -> None:
        """Make a layer of what lies in `installed`; no process may write there any more. Where
        another was quicker, theirs is used."""
        found = _content(installed, own=True)
        staged = build / "layer"
        staged.mkdir(mode=0o755)
        staged.chmod(0o755)
        installed.rename(staged / SITE)
        (staged / SITE).chmod(PROGRAM_MODE)
        layer = Layer(
            requirements=requirements,
            image_digest=image_digest,
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            files=found.files,
            created_unix_s=time.time(),
        )
        write_atomic(staged / RECORD, msgspec.json.encode(layer))
        name = layer_name(requirements, image_digest)
        try:
            staged.rename(self._root / name)
        except OSError:
            if not (self._root / name).exists():
                raise
            return
        sync_directory(self._root)
        self._verified[name] = _mark(self._root / name)

    # -------------------------------------------------------------- remove

    def tidy(self) -> None:
        """Remove what a life before this one left half made or half removed."""
        for place in self._left:
            remove_tree(place)

    def prune(self) -> bool:
        """Past the size the least used go, never one that an attempt uses or may be about to;
        True: for those they are still past it."""
        disk = os.statvfs(self._root)
        most = min(MOST_BYTES, int(disk.f_blocks * disk.f_frsize * MOST_DISK_SHARE))
        listed = sorted(self._by_use())
        total = sum(size for _, _, size in listed)
        for used_unix_s, name, size in listed:
            if total <= most:
                break
            is_fresh = abs(time.time() - used_unix_s) < FRESH_S
            if not is_fresh and self._remove(self._root / name, only_unused=True):
                total -= size
        return total > most

    def _by_use(self) -> Iterator[tuple[float, str, int]]:
        for place in self._root.iterdir():
            if place.name.startswith("."):
                continue
            try:
                layer, used = self._read(place.name), (place / RECORD).stat().st_mtime
                yield used, place.name, layer.size_bytes
            except (OSError, ValueError):
                yield 0.0, place.name, 0  # broken: the next use would say so

    def _remove(self, place: Path, *, only_unused: bool = False) -> bool:
        aside = place.with_name(f"{OLD}{place.name}-{os.urandom(4).hex()}")
        with self._lock:
            users = {key for key, name in self._users.items() if name == place.name}
            if only_unused and users:
                return False
            place.rename(aside)
            self._verified.pop(place.name, None)
            if users:  # a task that has it mounted keeps its files until it ends
                self._aside[aside] = users
        log.info("layer %s is removed", place.name)
        if not users:
            remove_tree(aside)
        return True


def _mark(place: Path) -> tuple[int, ...]:
    """Changes when the folder is another."""
    status = (place / SITE).stat()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _content(root: Path, *, own: bool = False) -> Content:
    """Look at all of it; with `own` it becomes ours and read-only on the way. Not synced, which
    takes minutes for a large one: what a power cut tears, the next life's look finds."""
    digest, size, files = hashlib.sha256(), 0, 0
    try:
        for found in walk(root):
            entry = _entry(found, own=own)
            digest.update(json.dumps([found.depth, found.name, *entry]).encode())
            size += entry_bytes(found.status)
            files += 1
    except TooManyEntriesError as err:
        raise LayerError("they have too many files and folders") from err
    if own:
        _own_directory(root, None)
    return Content(digest.hexdigest(), size, files)


def _entry(found: Found, *, own: bool) -> tuple[str, str]:
    """Its kind and what it says."""
    mode = found.status.st_mode
    if found.is_directory:
        if own:
            _own_directory(found.name, found.directory)
        return "folder", ""
    if stat.S_ISLNK(mode):
        if own and os.geteuid() == 0:
            os.chown(found.name, 0, 0, dir_fd=found.directory, follow_symlinks=False)
        return "link", os.readlink(found.name, dir_fd=found.directory)
    if not found.is_file:
        raise LayerError(f"they have {found.name!r}, which is no file, folder or link")
    if mode & SET_ID:  # the kernel lets only its owner, or CAP_FOWNER, take that away
        raise LayerError(f"they have {found.name!r}, which is a set-id program")
    descriptor = os.open(found.name, FILE_FLAGS, dir_fd=found.directory)
    with os.fdopen(descriptor, "rb") as file:
        if own:
            _own(descriptor, PROGRAM_MODE if mode & 0o111 else FILE_MODE)
        kind = "program" if mode & 0o111 else "file"
        return kind, hashlib.file_digest(file, "sha256").hexdigest()


def _own_directory(name: str | Path, directory: int | None) -> None:
    descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        _own(descriptor, PROGRAM_MODE if directory is not None else 0o755)
    finally:
        os.close(descriptor)


def _own(descriptor: int, mode: int) -> None:
    """Root's: the task's user can't make it writable again."""
    if os.geteuid() == 0:
        os.fchown(descriptor, 0, 0)
    os.fchmod(descriptor, mode)
