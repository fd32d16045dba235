"""What `--input` names, made ready to send: a file as it is, a directory as an archive.

Links are sent as what they lead to, if that is a file; what is neither file nor directory is not.
"""

import hashlib
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from procs.client.core import Malformed


@dataclass
class Input:
    """One input: its place below /task, and its content as an open file."""

    path: str
    content: BinaryIO
    sha256: str
    size_bytes: int
    unpack: bool


def gather(paths: list[Path], stack: ExitStack) -> list[Input]:
    """The inputs, open until `stack` closes."""
    found: dict[str, Input] = {}
    for path in paths:
        name = path.resolve().name
        if not name:
            raise Malformed(f"--input {path}: it has no name that it could have at /task")
        if name in found:
            raise Malformed(f"--input {path}: another input is called {name}")
        try:
            found[name] = _open(path, name, stack)
        except OSError as err:
            raise Malformed(f"--input {path}: {err.strerror}") from err
    return list(found.values())


def _open(path: Path, name: str, stack: ExitStack) -> Input:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        content: BinaryIO = stack.enter_context(path.open("rb"))
    elif stat.S_ISDIR(mode):
        archive = tempfile.TemporaryFile()  # noqa: SIM115 (the stack closes it)
        content = cast(BinaryIO, stack.enter_context(archive))
        _archive(path, content)
    else:
        raise Malformed(f"--input {path}: it is neither a file nor a directory")
    content.seek(0)
    sha256 = _sha256(content)
    size_bytes = content.seek(0, 2)
    content.seek(0)
    return Input(name, content, sha256, size_bytes, stat.S_ISDIR(mode))


def _sha256(content: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := content.read(2**20):
        digest.update(data)
    return digest.hexdigest()


def _archive(directory: Path, target: BinaryIO) -> None:
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as archive:
        for path in _below(directory):
            entry = archive.gettarinfo(path, str(path.relative_to(directory)))
            if path.is_symlink():
                entry = archive.gettarinfo(path.resolve(), str(path.relative_to(directory)))
            if entry.isdir():
                archive.addfile(entry)
                continue
            with path.open("rb") as file:
                entry.type, entry.linkname = tarfile.REGTYPE, ""  # hard links too: as copies
                entry.size = path.stat().st_size
                archive.addfile(entry, file)


def _below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield path
            yield from _below(path)
        elif path.is_file():
            yield path
