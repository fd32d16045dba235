"""Hostile inputs and outputs, as real tasks: what lies outside `input/` and `output/` is neither
written nor read.
"""

import gzip
import hashlib
import io
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.files import remove_tree
from shared.taskdir import MIB, InputSpec, Report, TaskKey
from tests.executor.hostile_kit import own
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker
SECRET = b"known-to-the-host-alone"


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


@pytest.fixture(scope="module")
def host() -> Iterator[Path]:
    """A folder of the host with a secret in it."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir="/tmp"))
    (folder / "secret").write_bytes(SECRET)
    yield folder
    remove_tree(folder)


# ------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Entry:
    """One of an archive, as tar has it; `kind` is tar's too."""

    name: str
    content: bytes = b""
    link: str = ""
    kind: bytes = tarfile.REGTYPE


def tarred(*entries: Entry) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.size = entry.kind, entry.link, len(entry.content)
            info.mode, info.devmajor, info.devminor = 0o6777, 1, 1
            archive.addfile(info, io.BytesIO(entry.content))
    return raw.getvalue()


def zipped(*entries: Entry) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name)
            is_link = entry.kind == tarfile.SYMTYPE
            info.external_attr = (stat.S_IFLNK if is_link else stat.S_IFREG) << 16
            archive.writestr(info, entry.link.encode() if is_link else entry.content)
    return raw.getvalue()


def link(name: str, target: str) -> Entry:
    return Entry(name, link=target, kind=tarfile.SYMTYPE)


ENDS = {  # what becomes of the task that gets it
    "dots-tar": "failed",
    "dots-zip": "failed",
    "absolute-tar": "failed",
    "absolute-zip": "failed",
    "through-link": "succeeded",
    "through-link-zip": "succeeded",
    "up-link": "failed",
    "over-link": "succeeded",
    "hard-link": "failed",
    "device": "failed",
    "fifo": "failed",
    "leaking-link": "succeeded",
    "bomb-tar": "failed",
    "bomb-zip": "failed",
    "set-id": "succeeded",
}
UP = "../" * 12


def archives(host: Path) -> dict[str, bytes]:
    """By name, as in ENDS."""
    place, evil = str(host), b"evil"
    return {
        "dots-tar": tarred(Entry(f"{UP}{place}/x", evil)),
        "dots-zip": zipped(Entry(f"{UP}{place}/x", evil)),
        "absolute-tar": tarred(Entry(f"{place}/x", evil)),
        "absolute-zip": zipped(Entry(f"{place}/x", evil)),
        "through-link": tarred(link("l", place), Entry("l/x", evil)),
        "through-link-zip": zipped(link("l", place), Entry("l/x", evil)),
        "up-link": tarred(link("l", ".."), link("l/m", place), Entry("m/x", evil)),
        "over-link": tarred(link("l", f"{place}/secret"), Entry("l", evil)),
        "hard-link": tarred(Entry("l", link=f"{place}/secret", kind=tarfile.LNKTYPE)),
        "device": tarred(Entry("d", kind=tarfile.CHRTYPE)),
        "fifo": tarred(Entry("f", kind=tarfile.FIFOTYPE)),
        "leaking-link": tarred(link("leak", f"{place}/secret")),
        "bomb-tar": tarred(Entry("zeros", bytes(80 * MIB))),
        "bomb-zip": zipped(Entry("zeros", bytes(80 * MIB))),
        "set-id": tarred(Entry("program", b"#!/bin/sh\nid -u\n")),
    }


LOOK = """
cat /task/in/leak 2>/dev/null
find /task -perm /6000 -print
find /task -type b -print -o -type c -print -o -type p -print
exit 0
"""


@dataclass(frozen=True)
class Given:
    """What became of the task that got one archive."""

    report: Report
    said: bytes
    outside: dict[str, bytes]  # what lies in the host's folder afterwards
    directory: frozenset[str]  # names in the task's own, beside input/


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def given(executor: ExecutorAlone, host: Path) -> dict[str, Given]:
    keys: dict[str, TaskKey] = {}
    for name, raw in archives(host).items():
        spec = InputSpec(
            path="in", size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest(), unpack=True
        )
        wish = task("sh", "-c", LOOK, name=own(name), inputs=(spec,))
        keys[name] = executor.assign(wish, blobs=(raw,))
    return {
        name: Given(
            executor.wait_report(key),
            executor.output(key),
            contents(host),
            frozenset(path.name for path in executor.directory(key).iterdir()),
        )
        for name, key in keys.items()
    }


@pytest.mark.parametrize("name", ENDS)
def test_a_hostile_archive_stays_in_its_place(
    given: dict[str, Given], host: Path, name: str
) -> None:
    found = given[name]
    assert found.report.phase == ENDS[name], found.report
    assert found.report.cause == ("input" if found.report.phase == "failed" else "")
    assert found.said == b""
    assert found.outside == {"secret": SECRET}
    assert found.directory <= {
        "spec", "report", "log", "run", "grant", "blobs", "input", "output", "claim", "container",
        "output.tar.gz",
    }  # fmt: skip


# ------------------------------------------------------------------ outputs


TRAPS = r"""
import os, socket, sys
host = sys.argv[1]
os.chdir("/output")
open("good", "w").write("good")
os.symlink(f"{host}/secret", "link")
os.symlink(host, "folder")
os.symlink("/", "root")
os.symlink("self", "self")
os.symlink("/proc/self/fd/0", "fd")
os.link("link", "hard-link-to-a-link")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
for name in (b"line\nbreak", b"\x1b[2J", b"\xff\xfe", b"-rf", b"\r", b"x" * 255, b"..."):
    open(name, "w").write("odd")
os.mkdir("locked")
open("locked/x", "w").write("locked")
os.chmod("locked/x", 0)
os.chmod("locked", 0)
os.chmod("good", 0o6777)
deep = os.open(".", os.O_RDONLY)
for _ in range(300):
    os.mkdir("d" * 200, dir_fd=deep)
    deep = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
os.chmod("/output", 0)
"""

SWAPS = """
import os, sys, time
host = sys.argv[1]
os.chdir("/output")
os.makedirs("real")
open("real/secret", "w").write("mine")
os.symlink(host, "fake")
os.link("real/secret", "f")
os.symlink(f"{host}/secret", "g")
pairs = (("real", "fake"), ("f", "g"))
a, b = pairs[os.fork() == 0]
end = time.monotonic() + 2
while time.monotonic() < end or a == "f":  # one goes on until it is killed
    os.rename(a, a + "t"); os.rename(b, a); os.rename(a + "t", b)
"""


def packed(executor: ExecutorAlone, key: TaskKey) -> dict[str, tarfile.TarInfo]:
    path = executor.directory(key) / "output.tar.gz"
    with gzip.open(path) as plain:
        raw = plain.read()
    assert SECRET not in raw
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return {member.name: member for member in archive}


def test_traps_in_the_output_catch_nobody(executor: ExecutorAlone, host: Path) -> None:
    wish = task("python3", "-c", TRAPS, str(host), name=own("traps"))
    key = executor.assign(wish)
    report = executor.wait_report(key)
    assert report.phase == "succeeded", (report.error, executor.output(key, 2))
    members = packed(executor, key)
    assert all(member.isreg() and not member.mode & 0o7000 for member in members.values())
    assert {"good", "locked/x", "line\nbreak", "\x1b[2J", "\udcff\udcfe"} <= set(members)
    assert not {"link", "folder", "root", "fd", "fifo", "socket"} & set(members)


def test_links_that_come_and_go_while_it_is_looked_at_lead_nowhere(
    executor: ExecutorAlone, host: Path
) -> None:
    key = executor.assign(task("python3", "-c", SWAPS, str(host), name=own("swaps")))
    report = executor.wait_report(key)
    assert report.phase == "succeeded", (report.error, executor.output(key, 2))
    packed(executor, key)
    assert contents(host) == {"secret": SECRET}


def test_all_of_it_is_removed(executor: ExecutorAlone) -> None:
    executor.wanted.clear()
    executor.wait(lambda: (state := executor.state()) and not state.tasks, "all released")
    left = [path.name for path in executor.home.glob("tasks/*/*") if path.is_dir()]
    assert left == []
