"""Output: what is taken of a hostile tree, and how much it is."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.collect import (
    DEEPEST,
    Packed,
    TooLargeError,
    disk_use_bytes,
    pack,
    wanted_by,
)
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


def test_a_very_deep_tree_ends_somewhere(output: Path) -> None:
    descriptor = os.open(output, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=descriptor)
        child = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = child
    os.close(descriptor)
    (output / "a").write_bytes(b"x")
    packed(output)
    assert content(output) == {"a": b"x"}
    assert disk_use_bytes(output) == (DEEPEST + 2) * 4096


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
    assert wanted_by(globs)(path) is taken
