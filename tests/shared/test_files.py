"""Files survive a kill whole; trees of a hostile task are removed whole, and nothing else."""

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared import files as files_module
from shared.files import remove_tree, sync_directory, sync_file, write_atomic
from tests.shared.polling import descriptor_count, names, until

ROOT = Path(__file__).parents[2]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
SOMEONE, SOMEONE_ELSE = 54321, 54322

WRITER = """
import sys
from pathlib import Path
from shared.files import write_atomic
path, sizes = Path(sys.argv[1]), (1, 300_000, 5, 200_001)
round = 0
while True:
    letter = b"abcdefghij"[round % 10 : round % 10 + 1]
    write_atomic(path, letter * sizes[round % 4])
    round += 1
"""
REMOVER = """
import sys
from pathlib import Path
from shared.files import remove_tree
from shared.service import drop_privileges
drop_privileges(frozenset(sys.argv[2:]))
remove_tree(Path(sys.argv[1]))
"""


def test_content_and_mode_are_replaced_and_nothing_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_bytes(b"old")
    path.chmod(0o666)
    previous = os.umask(0)
    try:
        write_atomic(path, b"new", 0o600)
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["secrets"]


def test_a_leftover_of_a_kill_does_not_leak_its_mode_or_length(tmp_path: Path) -> None:
    leftover = tmp_path / ".spec.new"
    leftover.write_bytes(b"x" * 100)
    leftover.chmod(0o666)
    write_atomic(tmp_path / "spec", b"new", 0o640)
    assert (tmp_path / "spec").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "spec").stat().st_mode) == 0o640
    assert not leftover.exists()


def test_a_link_that_stands_aside_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".spec.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        write_atomic(tmp_path / "spec", b"new")
    assert victim.read_bytes() == b"mine"


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "spec").symlink_to(victim)
    write_atomic(tmp_path / "spec", b"new")
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "spec").is_symlink()


def test_a_writer_that_is_killed_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "record"
    seen = set()
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT)
        try:
            before = path.stat().st_ino if path.exists() else 0
            until(lambda b=before: path.exists() and path.stat().st_ino != b, "a write", 0.001)  # type: ignore[misc]
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        content = path.read_bytes()
        assert len(content) in (1, 300_000, 5, 200_001)
        assert len(set(content)) == 1
        seen.add(len(content))
    assert set(names(tmp_path)) <= {"record", ".record.new"}
    assert seen


def test_what_can_not_be_written_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomic(path, b"n" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old"


def test_sync_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    sync_file(tmp_path / "file")
    sync_directory(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "directory_link").symlink_to(tmp_path)
    for act, name in ((sync_file, "link"), (sync_directory, "directory_link")):
        with pytest.raises(OSError, match=r"symbolic|Not a directory"):
            act(tmp_path / name)


# ------------------------------------------------------------------ trees


def test_what_is_not_there_is_removed(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")


def test_links_are_removed_and_what_they_point_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_bytes(b"kept")
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "directory").symlink_to(outside)
    (tree / "below" / "file").symlink_to(outside / "kept")
    (tree / "dangling").symlink_to("/nonexistent")
    os.link(outside / "kept", tree / "hard")
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").read_bytes() == b"kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_a_link_in_place_of_the_tree_is_removed_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    (tmp_path / "tree").symlink_to(outside)
    remove_tree(tmp_path / "tree")
    assert names(tmp_path) == ["outside"]
    assert names(outside) == ["kept"]


def test_a_file_in_place_of_the_tree_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").write_bytes(b"x")
    remove_tree(tmp_path / "tree")
    assert names(tmp_path) == []


def test_whatever_a_task_can_make_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo")
    (tree / os.fsdecode(b"\xff\n")).write_bytes(b"x")
    (tree / ("n" * 255)).mkdir()
    (tree / "-rf").write_bytes(b"x")
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    (tree / "sealed").mkdir()
    (tree / "sealed" / "file").write_bytes(b"x")
    (tree / "sealed").chmod(0)
    remove_tree(tree)
    assert names(tmp_path) == []


def test_ten_thousand_levels_deep(home: Path) -> None:
    tree = home / "tree"
    tree.mkdir()
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(10_000):
        os.mkdir("d", dir_fd=descriptor)
        if level % 100 == 0:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    before = descriptor_count()
    remove_tree(tree)
    assert names(home) == ["run"]
    assert descriptor_count() == before


def test_twenty_thousand_files_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "BATCH", 9000)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20_000):
        os.close(os.open(tree / str(number), os.O_CREAT | os.O_WRONLY))
    remove_tree(tree)
    assert names(tmp_path) == []


@NEEDS_ROOT
def test_another_users_tree_goes_with_chown_and_dac_override_alone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    deep = tree / "sticky" / "sealed" / "/".join("d" * 150)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    (tree / "sticky" / "of another").write_bytes(b"x")
    for place, _, files in os.walk(tree, topdown=False):
        for name in files:
            os.chown(Path(place) / name, SOMEONE_ELSE, SOMEONE_ELSE)
        os.chown(place, SOMEONE, SOMEONE)
        Path(place).chmod(0o1000)
    (tree / "sticky").chmod(0o1777)
    _remove_with(tree, "CHOWN", "DAC_OVERRIDE")
    assert names(tmp_path) == []


def test_ones_own_shut_directories_go_without_any_privilege(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_bytes(b"x")
    for place in (tree / "a" / "b", tree / "a", tree):
        place.chmod(0)
    _remove_with(tree)
    assert names(tmp_path) == []


def _remove_with(tree: Path, *capabilities: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", REMOVER, str(tree), *capabilities],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.stderr == ""
