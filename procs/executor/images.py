"""The images that this worker pulled, and which of them go when Docker's disk fills up.

`lib/images.json` says what was pulled and when it was last used; `lib/pulling.json` what is being
pulled, so that what a killed life brought is known by the next. What is in neither, the owner's own
images, is never touched. Docker is never forced: it refuses what a container has.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from procs.executor.engine import (
    Engine,
    EngineAwayError,
    EngineRefusedError,
    LocalImage,
    NotThereError,
)
from shared.files import write_atomic
from shared.images import ImageNameError, read_image

log = logging.getLogger("executor")

LOOK_EACH_S = 300.0  # at the disk, as long as there is something that could go
RELIEF_PCT = 10  # below the setting: else each pull would meet the limit again
Done = Callable[[], None]  # what a job leaves to the loop: nothing
IMAGES, PULLING = "images.json", "pulling.json"
T = TypeVar("T")
YOUNGEST_S = 600.0  # since it was pulled or used: the next of its tasks may be on its way


class Ours(msgspec.Struct, frozen=True):
    """An image that we pulled: the names that we pulled it by, and its last use."""

    names: tuple[str, ...]
    used_unix_s: float


def leaving(
    ours: Mapping[str, Ours],
    local: Iterable[LocalImage],
    wanted: Collection[str],
    in_use: Collection[str],
    now_unix_s: float,
) -> list[LocalImage]:
    """What may go, the longest unused first. `wanted` are names, `in_use` ids."""
    may = [
        image
        for image in local
        if image.image_id in ours
        and image.image_id not in in_use
        and now_unix_s - ours[image.image_id].used_unix_s >= YOUNGEST_S
        and not _names(image) & set(wanted)
        and _is_all_ours(image, ours[image.image_id])
    ]
    return sorted(may, key=lambda image: ours[image.image_id].used_unix_s)


def _is_all_ours(image: LocalImage, our: Ours) -> bool:
    """Has nobody else given it a name?"""
    repositories = {_repository(name) for name in our.names}
    digests = {_repository(digest) for digest in image.digests}
    return set(map(plain_name, image.tags)) <= set(our.names) and digests <= repositories


def _names(image: LocalImage) -> set[str]:
    return {plain_name(name) for name in (*image.tags, *image.digests)}


def plain_name(text: str) -> str:
    """One spelling for each image."""
    try:
        return read_image(text).name
    except ImageNameError:
        return text


def _repository(text: str) -> str:
    try:
        return read_image(text).repository
    except ImageNameError:
        return text


class Record:
    """Both files. Safe in any thread."""

    def __init__(self, folder: Path) -> None:
        self._path, self._pulling_path = folder / IMAGES, folder / PULLING
        self._lock = threading.Lock()
        self._ours = _read(self._path, Ours)
        self._pulling = _read(self._pulling_path, tuple[str, ...])

    def pulling(self) -> dict[str, tuple[str, ...]]:
        """What was begun: by name, the ids of the images that were here before."""
        with self._lock:
            return dict(self._pulling)

    def begin(self, name: str, before: Iterable[str]) -> None:
        """Of a pull: durable on return, if the disk has room."""
        with self._lock:
            self._pulling.setdefault(name, tuple(sorted(before)))
            write_atomic(self._pulling_path, msgspec.json.encode(self._pulling))

    def end(self, name: str) -> None:
        with self._lock:
            if self._pulling.pop(name, None) is not None:
                write_atomic(self._pulling_path, msgspec.json.encode(self._pulling))

    def all(self) -> dict[str, Ours]:
        with self._lock:
            return dict(self._ours)

    def add(self, image_id: str, name: str) -> None:
        """It was pulled just now: durable on return."""
        with self._lock:
            known = self._ours.get(image_id)
            names = sorted({plain_name(name), *(known.names if known else ())})
            self._ours[image_id] = Ours(tuple(names), time.time())
            self._write()

    def use(self, used: Mapping[str, float], local: Iterable[LocalImage]) -> None:
        """What was used since, by name."""
        times = {plain_name(name): at_unix_s for name, at_unix_s in used.items()}
        with self._lock:
            before = dict(self._ours)
            for image in local:
                our = before.get(image.image_id)
                newest = [times[name] for name in _names(image) & times.keys()]
                if our is not None and newest:
                    last = max(our.used_unix_s, *newest)
                    self._ours[image.image_id] = Ours(our.names, last)
            if self._ours != before:
                self._write()

    def forget(self, image_ids: Iterable[str]) -> None:
        """They are here no more."""
        with self._lock:
            gone = self._ours.keys() & set(image_ids)
            for image_id in gone:
                del self._ours[image_id]
            if gone:
                self._write()

    def _write(self) -> None:
        write_atomic(self._path, msgspec.json.encode(self._ours))


def _read(path: Path, kind: type[T]) -> dict[str, T]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, kind])  # type: ignore[valid-type]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:  # what is in it stays: nothing is removed on a guess
        log.error("images: %s can't be read, and is begun anew: %s", path, err)
        return {}


class Images:
    """The loop's side; `tidy` is a job, `pulling` belongs to a pull's thread."""

    def __init__(self, engine: Engine, home: Path, docker_host: str, most_pct: int) -> None:
        self._engine = engine
        self._home = home
        self._engine_is_local = docker_host.startswith("unix://")
        self._most_pct = most_pct
        self._record = Record(home / "lib")
        self._lock = threading.Lock()
        self._under_way: list[str] = []  # a name twice: its first pull was given up, and hangs
        self._used: dict[str, float] = {}
        self._due_s = 0.0

    # -------------------------------------------------------------- the loop

    def use(self, name: str) -> None:
        """A task was made ready with it."""
        self._used[name] = time.time()

    def look_soon(self) -> None:
        """A pull has ended."""
        self._due_s = 0.0

    def is_due(self, now_s: float) -> bool:
        return now_s >= self._due_s and bool(self._record.all() or self._record.pulling())

    def tidying(self, data_root: str, wanted: set[str], now_s: float) -> Callable[[], Done]:
        """The job, for now; `wanted` are the names that held attempts or the settings have."""
        self._due_s = now_s + LOOK_EACH_S
        used, self._used = self._used, {}
        return partial(self.tidy, data_root, wanted, used)

    # -------------------------------------------------------------- threads

    @contextmanager
    def pulling(self, name: str) -> Iterator[None]:
        """Around a pull. An image that is here before is not ours, should the pull bring it."""
        with self._lock:
            self._under_way.append(name)
        try:
            before = [image.image_id for image in self._engine.images()]
            try:
                self._record.begin(name, before)
            except OSError as err:
                log.warning("the pull of image %s is not noted: %s", name, err)
            yield
        finally:
            with self._lock:
                self._under_way.remove(name)
            self._settle(name)

    def _settle(self, name: str) -> None:
        """No pull of it is under way any more: what came is ours."""
        with self._lock:
            before = self._record.pulling().get(name)
            if before is None or name in self._under_way:
                return
        try:
            with suppress(NotThereError):
                image_id = self._engine.image(name).digest
                if image_id not in before or image_id in self._record.all():
                    self._record.add(image_id, name)
            self._record.end(name)
        except OSError as err:  # a full disk
            log.warning("image %s is not noted as pulled yet: %s", name, err)

    def tidy(self, data_root: str, wanted: set[str], used: Mapping[str, float]) -> Done:
        try:
            for name in self._record.pulling():
                self._settle(name)
            known = set(self._record.all())  # before the list: what comes meanwhile is not gone
            local = self._engine.images()
            self._record.forget(known - {image.image_id for image in local})
            self._record.use(used, local)
            place = self._place(data_root)
            if used_pct(place) > self._most_pct:
                self._remove_some(place, local, wanted)
        except (EngineAwayError, EngineRefusedError, OSError) as err:
            log.warning("images: not looked through: %s", err)
        return lambda: None

    def _place(self, data_root: str) -> Path:
        """Where Docker keeps them, if that is on this machine."""
        if self._engine_is_local and data_root and os.access(data_root, os.F_OK):
            return Path(data_root)
        return self._home

    def _remove_some(self, place: Path, local: list[LocalImage], wanted: set[str]) -> None:
        names = {plain_name(name) for name in wanted}
        in_use = self._engine.images_in_use()
        for image in leaving(self._record.all(), local, names, in_use, time.time()):
            full_pct = used_pct(place)
            if full_pct <= self._most_pct - RELIEF_PCT:
                return
            self._remove(image, full_pct)

    def _remove(self, image: LocalImage, full_pct: float) -> None:
        what = image.tags or image.digests or (image.image_id,)
        try:
            for reference in what:
                self._engine.remove_image(reference)
        except EngineRefusedError as err:  # a container has it, or another image is built on it
            log.info("image %s stays: %s", what[0], err)
            return
        log.info("image %s removed: the disk is %.0f %% full", what[0], full_pct)


def used_pct(place: Path) -> float:
    """As df says it."""
    disk = os.statvfs(place)
    used = disk.f_blocks - disk.f_bfree
    return 100 * used / max(used + disk.f_bavail, 1)
