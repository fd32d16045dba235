"""Inputs: checked against the assignment, and laid out below `input/`, mounted at /task.

Content is verified before it is shown to a task; an archive can't put anything outside its
place: entries are written only below directories that we made, links last.
"""

import gzip
import hashlib
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import zstandard

from shared import sentences
from shared.files import NO_ROOM, remove_tree
from shared.messages import TaskPhase
from shared.sentences import Said
from shared.taskdir import INPUT, MIB, InputSpec, Spec

BLOBS = "blobs"
MOST_ENTRIES = 200_000  # of one task; more is an attack on the disk's inodes
DEEPEST = 100  # folders; each is looked at again for each entry below it
CHUNK_BYTES = MIB
LONGEST_LINK_BYTES = 4095
MOST_LINK_BYTES = 16 * MIB  # links are held until all else is there
LARGEST_HEADER_BYTES = 16 * 1024  # a path and a link of the longest take half
LONG_NUMBER = re.compile(rb"[0-9]{256}")
LARGEST_DIRECTORY_BYTES = 16 * MIB  # of a .zip: zipfile holds ten times as much
READ_WHOLE = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA may ask for 4 GiB
BROKEN = (  # what the libraries raise for bytes that are no archive
    tarfile.TarError, zipfile.BadZipFile, zstandard.ZstdError, zlib.error, struct.error,
    EOFError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755
SPARSE = "a sparse file"  # its map may be of any size


class _Header(tarfile.TarInfo):
    """Refuses what tarfile would read into memory whole, however large its archive says it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        found = super().frombuf(buf, encoding, errors)
        if found.type in READ_WHOLE and found.size > LARGEST_HEADER_BYTES:
            raise ValueError(f"a header of {found.size} bytes")
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError(SPARSE)
        return found

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Refuses what many a tarfile searches for the square of a number's digits, with no other
        thread of this process running meanwhile."""
        base: Any = super()
        stream: Any = archive.fileobj
        content = stream.read(base._block(self.size))
        if LONG_NUMBER.search(content):
            raise ValueError("a header with a number of over 255 digits")
        archive.fileobj = _Once(content, archive, stream)  # type: ignore[assignment]
        found: tarfile.TarInfo = base._proc_pax(archive)
        return found

    def _proc_gnusparse_10(self, *_: object) -> None:
        """The form whose map lies in the content; that of the others is in a header."""
        raise ValueError(SPARSE)


@dataclass
class _Once:
    """In place of an archive's stream: what was read of it is read once more."""

    content: bytes
    archive: tarfile.TarFile
    stream: Any

    def read(self, _: int) -> bytes:
        self.archive.fileobj = self.stream
        return self.content


class _Directory(io.FileIO):
    """A .zip whose list of entries, which zipfile reads with one call, has a bound."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > LARGEST_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size} bytes")
        return super().read(size)


@dataclass
class _Room:
    """What the inputs of one task may still take."""

    bytes: int
    entries: int

    def take_bytes(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise ValueError("its content is larger than the task's disk limit")

    def take_entry(self) -> None:
        self.entries -= 1
        if self.entries < 0:
            raise ValueError(f"over {MOST_ENTRIES} files and folders")


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
    room = _Room(limit_bytes, MOST_ENTRIES)
    for index, wanted in enumerate(spec.inputs):
        blob = directory / BLOBS / str(index)
        _verify(blob, wanted)
        path = PurePosixPath(wanted.path)
        try:
            if wanted.unpack:
                _unpack(blob, _folder(root, path, room), room)
            else:
                _place(blob, root, path, room)
        except OSError as err:
            if err.errno in NO_ROOM or not wanted.unpack:
                raise
            raise _broken(wanted, err) from err
        except BROKEN as err:
            raise _broken(wanted, err) from err


def _broken(wanted: InputSpec, err: Exception) -> InputError:
    return InputError(sentences.INPUT_BROKEN.say(path=wanted.path, words=err))


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


def _folder(root: Path, path: PurePosixPath, room: _Room) -> Path:
    """The folder `path` below root, made of real folders only."""
    place = root
    for part in path.parts:
        place = place / part
        try:
            place.mkdir(mode=FOLDER_MODE)
            place.chmod(FOLDER_MODE)
            room.take_entry()
        except FileExistsError:
            if not stat.S_ISDIR(place.lstat().st_mode):
                said = sentences.INPUT_FILE_AND_FOLDER.say(path=path, name=part)
                raise InputError(said) from None
    return place


def _place(blob: Path, root: Path, path: PurePosixPath, room: _Room) -> None:
    target = _folder(root, path.parent, room) / path.name
    blob.chmod(FILE_MODE)
    try:
        os.link(blob, target)
    except FileExistsError:
        raise InputError(sentences.INPUT_TWICE.say(path=path)) from None


def _unpack(blob: Path, root: Path, room: _Room) -> None:
    links: list[Entry] = []
    links_bytes = 0
    for entry in _entries(blob):
        _check(entry)
        if entry.link:
            links.append(entry)
            links_bytes += len(entry.link) + len(str(entry.path))
            if links_bytes > MOST_LINK_BYTES:
                raise ValueError(f"links of over {MOST_LINK_BYTES} bytes")
        elif entry.is_folder:
            _folder(root, entry.path, room)
        else:
            _write(entry, root, room)
    for entry in links:  # last: nothing is ever written through a link
        _link(entry, root, room)


def _link(entry: Entry, root: Path, room: _Room) -> None:
    place = _folder(root, entry.path.parent, room) / entry.path.name
    if not place.is_symlink() and not place.exists():
        room.take_entry()
        place.symlink_to(entry.link)


def _check(entry: Entry) -> None:
    if entry.path.is_absolute() or ".." in entry.path.parts:
        raise ValueError(f"entry {str(entry.path)!r} would leave its directory")
    if len(entry.path.parts) > DEEPEST:
        raise ValueError(f"an entry over {DEEPEST} folders deep")


def _write(entry: Entry, root: Path, room: _Room) -> None:
    if not entry.path.name or entry.content is None:
        raise ValueError(f"entry {str(entry.path)!r} is no file, folder or link")
    target = _folder(root, entry.path.parent, room) / entry.path.name
    if target.is_dir() and not target.is_symlink():
        raise ValueError(f"entry {str(entry.path)!r} is a file and a folder")
    target.unlink(missing_ok=True)  # a later entry of the same name wins, as tar has it
    room.take_entry()
    with target.open("xb") as file:
        while chunk := entry.content.read(CHUNK_BYTES):
            room.take_bytes(len(chunk))
            file.write(chunk)
    target.chmod(PROGRAM_MODE if entry.mode & 0o111 else FILE_MODE)


def _entries(blob: Path) -> Iterator[Entry]:
    with blob.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04" or head == b"PK\x05\x06":
        yield from _zip_entries(blob)
    elif head == zstandard.FRAME_HEADER:
        with blob.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            yield from _tar_entries(plain)
    elif head[:2] == b"\x1f\x8b":
        with gzip.GzipFile(blob) as plain:  # tarfile's own holds all that 10 KiB grow to
            yield from _tar_entries(plain)
    else:
        with blob.open("rb") as plain:
            yield from _tar_entries(plain)


def _zip_entries(blob: Path) -> Iterator[Entry]:
    with _Directory(blob) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type not in UNPACKED:
                raise ValueError(f"entry {info.filename!r} is compressed in a rare way")
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


def _tar_entries(file: IO[bytes] | gzip.GzipFile) -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode="r|", encoding="utf-8", tarinfo=_Header) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            link = member.linkname if member.issym() else ""
            if member.islnk():
                raise ValueError(f"entry {member.name!r} is a hard link")
            content = archive.extractfile(member) if member.isfile() else None
            yield Entry(path, member.isdir(), link, member.mode, content)
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps each header …
            archive.pax_headers.clear()  # type: ignore[attr-defined]  # … and these, for all that follow
