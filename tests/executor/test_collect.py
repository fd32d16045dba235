"""Output: what is taken of a hostile tree, and how much it is."""

import hashlib
import os
import resource
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor import walk as walk_module
from procs.executor.collect import (
    LONGEST_PATH_BYTES,
    Packed,
    TooLargeError,
    disk_use_bytes,
    pack,
)
from procs.executor.globs import Globs
from procs.executor.walk import KEPT_OPEN, MovedError, TooManyEntriesError, walk
from shared.files import remove_tree
from shared.taskdir import GIB, MIB


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "output"
    folder.mkdir()
    yield folder
    remove_tree(folder)  # pytest's own clean-up gives up on a deep tree


def packed(output: Path, *globs: str, limit: int = GIB) -> Packed:
    return pack(output.parent, output, globs, limit)


def content(output: Path) -> dict[str, bytes]:
    with tarfile.open(output.parent / "output.tar.gz") as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def test_regular_files_are_packed_with_their_digest(output: Path) -> None:
    (output / "d").mkdir()
    (output / "d" / "é x").write_bytes(b"1")
    (output / "a").write_bytes(b"2")
    found = packed(output)
    raw = (output.parent / "output.tar.gz").read_bytes()
    assert content(output) == {"a": b"2", "d/é x": b"1"}
    assert found == Packed(hashlib.sha256(raw).hexdigest(), len(raw), 2)


def test_nothing_is_no_archive(output: Path) -> None:
    assert packed(output) == Packed()
    assert not (output.parent / "output.tar.gz").exists()


def test_links_fifos_and_sockets_are_not_followed_or_opened(output: Path) -> None:
    (output / "secret").symlink_to("/etc/shadow")
    (output / "folder").symlink_to("/etc")
    os.mkfifo(output / "fifo")
    (output / "real").write_bytes(b"x")
    packed(output)
    assert content(output) == {"real": b"x"}


def test_hard_links_are_copies_and_set_id_bits_go(output: Path) -> None:
    (output / "a").write_bytes(b"x")
    (output / "a").chmod(0o6755)
    (output / "b").hardlink_to(output / "a")
    packed(output)
    assert content(output) == {"a": b"x", "b": b"x"}
    with tarfile.open(output.parent / "output.tar.gz") as archive:
        assert {m.mode for m in archive} == {0o755}


def test_names_that_are_not_text_survive(output: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (output / name).write_bytes(b"x")
    packed(output)
    assert content(output) == {name: b"x"}


def test_past_the_limit_nothing_is_packed(output: Path) -> None:
    (output / "a").write_bytes(b"x" * 1001)
    with pytest.raises(TooLargeError, match="output_limit_bytes, 1000"):
        packed(output, limit=1000)
    assert not (output.parent / "output.tar.gz").exists()


def test_a_sparse_giant_is_past_the_limit_at_once(output: Path) -> None:
    with (output / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLargeError):
        packed(output)
    assert disk_use_bytes(output) >= 1 << 40


def dig(output: Path, levels: int, name: str = "d") -> int:
    """A tree that deep; the descriptor of its end."""
    descriptor = os.open(output, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=descriptor)
        child = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = child
    return descriptor


def put(directory: int, name: str, text: bytes = b"x") -> None:
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)


def test_what_is_deep_is_packed_as_far_as_a_path_can_say_it(output: Path) -> None:
    end = dig(output, 2000)
    put(end, "deep")
    os.close(end)
    (output / "flat").write_bytes(b"y")
    packed(output)
    assert content(output) == {"d/" * 2000 + "deep": b"x", "flat": b"y"}


def test_a_path_that_nobody_can_unpack_is_said_and_not_left_out(output: Path) -> None:
    end = dig(output, LONGEST_PATH_BYTES // 2)
    put(end, "xx")
    os.close(end)
    (output / "flat").write_bytes(b"y")
    with pytest.raises(TooLargeError, match=r"over 4095 bytes.*…/xx"):
        packed(output)
    assert not (output.parent / "output.tar.gz").exists()
    assert packed(output, "flat").files == 1


def test_thousands_of_levels_are_walked_with_few_descriptors(output: Path) -> None:
    os.close(dig(output, 3_000))
    (output / "z").write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len([*Path("/proc/self/fd").iterdir()]) + KEPT_OPEN + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        assert packed(output).files == 1
        assert disk_use_bytes(output) == 3_001 * 4096
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_entry_of_a_bushy_tree_is_found_once(output: Path) -> None:
    wanted = set()
    for branch in ("a", "b"):
        end = dig(output, 3 * KEPT_OPEN, branch)
        put(end, "end")
        os.close(end)
        for depth in range(3 * KEPT_OPEN):
            folder = output / "/".join([branch] * depth)
            (folder / f"{branch}-{depth}").write_bytes(b"x")
            wanted.add(str((folder / f"{branch}-{depth}").relative_to(output)))
        wanted.add("/".join([branch] * 3 * KEPT_OPEN) + "/end")
    packed(output)
    with tarfile.open(output.parent / "output.tar.gz") as archive:
        names = archive.getnames()
    assert set(names) == wanted
    assert len(names) == len(wanted)


def test_a_folder_that_is_moved_under_the_walk_leads_nowhere_else(output: Path) -> None:
    """The way up from it, once it is opened again, is not the way that the walk came down."""
    outside = output.parent / "outside"
    outside.mkdir()
    (outside / "zz").write_bytes(b"secret of the host")
    os.close(dig(output, KEPT_OPEN + 2))
    (output / "d" / "zz").write_bytes(b"own")
    seen = []
    before = len(list(Path("/proc/self/fd").iterdir()))
    for found in walk(output):
        seen.append((found.name, found.status.st_size))
        if found.depth == KEPT_OPEN + 1:
            (output / "d" / "d").rename(outside / "moved")
    assert {name for name, _ in seen} == {"d"}
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_measure_that_a_move_cuts_short_is_none(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(dig(output, KEPT_OPEN + 10))
    real = walk_module._leave

    def move_first(levels: list[walk_module._Level], *, whole: bool) -> None:
        """As a task does that renames a folder above the one that is looked at."""
        if len(levels) > 1 and not levels[-2].is_open:
            below = Path(f"/proc/self/fd/{levels[-1].descriptor}").readlink()
            below.rename(output.parent / "elsewhere")
        real(levels, whole=whole)

    monkeypatch.setattr(walk_module, "_leave", move_first)
    with pytest.raises(MovedError):
        disk_use_bytes(output)


def test_too_many_entries_are_said(output: Path) -> None:
    for n in range(20):
        (output / str(n)).mkdir()
        (output / str(n) / "x").touch()
    with pytest.raises(TooManyEntriesError):
        list(walk(output, most_entries=39))
    assert len(list(walk(output, most_entries=40))) == 40


def test_a_link_that_takes_a_files_place_while_it_is_packed_is_not_followed(output: Path) -> None:
    """A racing process, which no longer lives when it matters: even so."""
    secret = output.parent / "report"
    secret.write_bytes(b"secret of the host")
    for n in range(50):
        (output / str(n)).mkdir()
        (output / str(n) / "f").write_bytes(b"own")
    end = threading.Event()
    racing = threading.Thread(target=_swap, args=(output, secret, end))
    racing.start()
    try:
        for _ in range(30):
            try:
                packed(output)
            except OSError:
                continue  # it was changed under us: said, and never wrong
            with tarfile.open(output.parent / "output.tar.gz") as archive:
                for member in archive:
                    assert archive.extractfile(member).read() in (b"", b"own")  # type: ignore[union-attr]
            disk_use_bytes(output)
    finally:
        end.set()
        racing.join()
    assert secret.read_bytes() == b"secret of the host"


def _swap(output: Path, secret: Path, end: threading.Event) -> None:
    aside = output.parent / "aside"
    aside.mkdir()
    (aside / "f").write_bytes(b"secret of the host")
    while not end.is_set():
        for n in range(0, 50, 2):
            file, folder = output / str(n) / "f", output / str(n + 1)
            link = output.parent / "link"
            link.symlink_to(secret)
            link.replace(file)
            folder.rename(output.parent / "gone")
            folder.symlink_to(aside)
            folder.unlink()
            (output.parent / "gone").rename(folder)
            file.unlink()
            file.write_bytes(b"own")


def test_small_entries_count_as_a_block(output: Path) -> None:
    for n in range(10):
        (output / str(n)).touch()
    assert disk_use_bytes(output) == 10 * 4096
    (output / "big").write_bytes(b"x" * MIB)
    assert disk_use_bytes(output) >= 10 * 4096 + MIB


@pytest.mark.parametrize(
    ("globs", "path", "taken"),
    [
        ((), "any/thing", True),
        (("*.txt",), "a.txt", True),
        (("*.txt",), "a.txt2", False),
        (("*.txt",), "d/a.txt", False),
        (("**/*.txt",), "a.txt", True),
        (("**/*.txt",), "d/e/a.txt", True),
        (("d",), "d/e/a", True),
        (("d/*",), "d/a", True),
        (("a?c", "x"), "abc", True),
        (("a?c", "x"), "a/c", False),
        (("a.c",), "abc", False),
        (("/d/*",), "d/a", True),
        (("d/*",), "d/e/a", True),
        (("d/**",), "d/e/a", True),
        (("d/**/x",), "d/x", True),
        (("d/**/x",), "d/e/f/x", True),
        (("d/**/x",), "d/e/f/y", False),
        (("a*b*c",), "a1b2b3c", True),
        (("a*b*c",), "a1b2b3", False),
        (("*ab",), "aab", True),
        (("*\n",), "x\n", True),
        (("**/a*a*a*a*a*a*a*a*a*a*a*a*b",) * 9, "a" * 250, False),
        (("/".join(["**", "a"] * 50),), "/".join(["a"] * 100) + "/b", True),
        (("/".join(["**", "a"] * 50) + "/c",), "/".join(["a"] * 100) + "/b", False),
    ],
)
def test_globs(globs: tuple[str, ...], path: str, taken: bool) -> None:
    patterns = Globs(globs)
    reached = patterns.root
    for name in path.split("/"):
        reached = patterns.step(reached, name)
    assert patterns.takes(reached) is taken


def test_names_are_held_only_so_far(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MOST_NAMES_BYTES", 8_000)
    for folder in "abc":
        (output / folder).mkdir()
        for number in range(20):
            (output / folder / ("x" * 200 + str(number))).touch()
    assert len(list(walk(output))) == 63  # a folder's are let go before the next one's
    for number in range(20):
        (output / "c" / ("y" * 200 + str(number))).touch()
    with pytest.raises(TooManyEntriesError):
        list(walk(output))
