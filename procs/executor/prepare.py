"""Inputs: checked against the assignment, and laid out below `input/`, mounted at /task.

Content is verified before it is shown to a task; an archive can't put anything outside its
place: entries are written only below directories that we made, links last.
"""

import hashlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import zstandard

from shared import sentences
from shared.files import NO_ROOM, remove_tree
from shared.messages import TaskPhase
from shared.sentences import Said
from shared.taskdir import INPUT, MIB, InputSpec, Spec

BLOBS = "blobs"
MOST_ENTRIES = 200_000  # of one archive; more is an attack on the disk's inodes
CHUNK_BYTES = MIB
LONGEST_LINK_BYTES = 4095
LARGEST_HEADER_BYTES = MIB
READ_WHOLE = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755


class _Header(tarfile.TarInfo):
    """Refuses what tarfile would read into memory whole, however large its archive says it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        found = super().frombuf(buf, encoding, errors)
        if found.type in READ_WHOLE and found.size > LARGEST_HEADER_BYTES:
            raise ValueError(f"a header of {found.size} bytes")
        return found


class InputError(Exception):
    """An input is missing, differs from the assignment, or its archive is broken."""

    def __init__(self, said: Said[TaskPhase]) -> None:
        super().__init__(said.text)
        self.said = said


@dataclass(frozen=True)
class Entry:
    """One entry of an archive: a folder, a file, or a link with its target."""

    path: PurePosixPath
    is_folder: bool
    link: str
    mode: int
    content: IO[bytes] | None


def missing(directory: Path, spec: Spec) -> bool:
    """Has an input not come yet? InputError when it never will."""
    waiting = False
    for index, wanted in enumerate(spec.inputs):
        blob = directory / BLOBS / str(index)
        if wanted.size_bytes == 0 or blob.exists():
            continue
        refused = blob.with_suffix(".missing")
        if refused.exists():
            words = refused.read_text().strip()
            raise InputError(sentences.INPUT_MISSING.say(path=wanted.path, words=words))
        waiting = True
    return waiting


def lay_out(directory: Path, spec: Spec, limit_bytes: int) -> None:
    """Make `input/` from the blobs, whole or with InputError; begun anew each time."""
    root = directory / INPUT
    remove_tree(root)
    root.mkdir(mode=FOLDER_MODE)
    root.chmod(FOLDER_MODE)
    left = limit_bytes
    for index, wanted in enumerate(spec.inputs):
        blob = directory / BLOBS / str(index)
        _verify(blob, wanted)
        if wanted.unpack:
            left -= _unpack(blob, _folder(root, PurePosixPath(wanted.path)), wanted, left)
        else:
            _place(blob, root, PurePosixPath(wanted.path))


def _verify(blob: Path, wanted: InputSpec) -> None:
    if wanted.size_bytes == 0:
        blob.parent.mkdir(exist_ok=True)
        blob.touch()
    size = blob.stat().st_size
    if size != wanted.size_bytes:
        said = sentences.INPUT_SIZE_DIFFERS.say(
            path=wanted.path, size=size, wanted=wanted.size_bytes
        )
        raise InputError(said)
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted.sha256 and digest != wanted.sha256:
        raise InputError(sentences.INPUT_DIGEST_DIFFERS.say(path=wanted.path))


def _folder(root: Path, path: PurePosixPath) -> Path:
    """The folder `path` below root, made of real folders only."""
    place = root
    for part in path.parts:
        place = place / part
        try:
            place.mkdir(mode=FOLDER_MODE)
            place.chmod(FOLDER_MODE)
        except FileExistsError:
            if not stat.S_ISDIR(place.lstat().st_mode):
                said = sentences.INPUT_FILE_AND_FOLDER.say(path=path, name=part)
                raise InputError(said) from None
    return place


def _place(blob: Path, root: Path, path: PurePosixPath) -> None:
    target = _folder(root, path.parent) / path.name
    blob.chmod(FILE_MODE)
    try:
        os.link(blob, target)
    except FileExistsError:
        raise InputError(sentences.INPUT_TWICE.say(path=path)) from None


def _unpack(blob: Path, root: Path, wanted: InputSpec, limit_bytes: int) -> int:
    """Unpack one archive; the bytes written."""
    written = 0
    links: list[Entry] = []
    try:
        for count, entry in enumerate(_entries(blob)):
            _check(entry, count, wanted)
            if entry.link:
                links.append(entry)
            elif entry.is_folder:
                _folder(root, entry.path)
            else:
                written += _write(entry, root, limit_bytes - written, wanted)
        for entry in links:  # last: nothing is ever written through a link
            _link(entry, root)
    except OSError as err:
        if err.errno in NO_ROOM:
            raise
        raise _broken(wanted, err) from err
    except (tarfile.TarError, zipfile.BadZipFile, zstandard.ZstdError, EOFError, ValueError,
            NotImplementedError, RuntimeError) as err:  # fmt: skip
        raise _broken(wanted, err) from err
    return written


def _broken(wanted: InputSpec, err: Exception) -> InputError:
    return InputError(sentences.INPUT_BROKEN.say(path=wanted.path, words=err))


def _link(entry: Entry, root: Path) -> None:
    place = _folder(root, entry.path.parent) / entry.path.name
    if not place.is_symlink() and not place.exists():
        place.symlink_to(entry.link)


def _check(entry: Entry, count: int, wanted: InputSpec) -> None:
    if entry.path.is_absolute() or ".." in entry.path.parts:
        raise ValueError(f"entry {str(entry.path)!r} would leave its directory")
    if count >= MOST_ENTRIES:
        raise ValueError(f"over {MOST_ENTRIES} entries")


def _write(entry: Entry, root: Path, limit_bytes: int, wanted: InputSpec) -> int:
    if not entry.path.name or entry.content is None:
        raise ValueError(f"entry {str(entry.path)!r} is no file, folder or link")
    target = _folder(root, entry.path.parent) / entry.path.name
    if target.is_dir() and not target.is_symlink():
        raise ValueError(f"entry {str(entry.path)!r} is a file and a folder")
    target.unlink(missing_ok=True)  # a later entry of the same name wins, as tar has it
    written = 0
    with target.open("xb") as file:
        while chunk := entry.content.read(CHUNK_BYTES):
            written += len(chunk)
            if written > limit_bytes:
                raise ValueError("its content is larger than the task's disk limit")
            file.write(chunk)
    target.chmod(PROGRAM_MODE if entry.mode & 0o111 else FILE_MODE)
    return written


def _entries(blob: Path) -> Iterator[Entry]:
    with blob.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04" or head == b"PK\x05\x06":
        yield from _zip_entries(blob)
    elif head == zstandard.FRAME_HEADER:
        with blob.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            yield from _tar_entries(plain, "r|")
    else:
        with blob.open("rb") as file:
            yield from _tar_entries(file, "r|gz" if head[:2] == b"\x1f\x8b" else "r|")


def _zip_entries(blob: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(blob) as archive:
        for info in archive.infolist():
            mode, path = info.external_attr >> 16, PurePosixPath(info.filename)
            if stat.S_ISLNK(mode):
                with archive.open(info) as content:
                    target = content.read(LONGEST_LINK_BYTES + 1).decode()
                yield Entry(path, False, target, mode, None)
            elif info.is_dir():
                yield Entry(path, True, "", mode, None)
            else:
                with archive.open(info) as content:
                    yield Entry(path, False, "", mode, content)


def _tar_entries(file: IO[bytes], mode: str) -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode=mode, encoding="utf-8", tarinfo=_Header) as archive:  # type: ignore[call-overload]
        for member in archive:
            path = PurePosixPath(member.name)
            link = member.linkname if member.issym() else ""
            if member.islnk():
                raise ValueError(f"entry {member.name!r} is a hard link")
            content = archive.extractfile(member) if member.isfile() else None
            yield Entry(path, member.isdir(), link, member.mode, content)
