"""The host's side of a claim: what is laid out, for whom, and what is refused."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from procs.executor.claim import AlreadyRanError, Start, settle, write_claim
from shared.limits import MAX_START_BYTES, MAX_STRING_BYTES, start_fault

UID = GID = 65534
START = Start(("echo", "hi"), {"TOKEN": "s3cret"}, 1000, 2000)


def test_the_files_are_ours_and_the_directory_the_tasks(tmp_path: Path) -> None:
    write_claim(tmp_path, START, UID, GID)
    claim = tmp_path / "claim"
    assert (claim.stat().st_uid, stat.S_IMODE(claim.stat().st_mode)) == (UID, 0o700)
    for name, mode in (("run", 0o664), ("log", 0o664), ("start", 0o440)):
        status = (claim / name).stat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), GID)
        assert stat.S_IMODE(status.st_mode) == mode
    assert (claim / "run").samefile(tmp_path / "run")
    assert (claim / "log").samefile(tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim", "log", "run"]


def test_the_record_is_empty_but_has_its_room(tmp_path: Path) -> None:
    write_claim(tmp_path, START, UID, GID)
    status = (tmp_path / "run").stat()
    assert status.st_size == 0
    assert status.st_blocks * 512 >= 4096


def test_the_start_is_counted_strings(tmp_path: Path) -> None:
    write_claim(tmp_path, Start(("a", b"\xff"), {"N": "v=w"}, 1, 2), UID, GID)
    content = (tmp_path / "claim" / "start").read_bytes()
    assert content == b"hivemind-start 1\x001\x002\x002\x001\0a\0\xff\0N=v=w\0"


def test_a_claim_is_made_afresh(tmp_path: Path) -> None:
    write_claim(tmp_path, START, UID, GID)
    (tmp_path / "claim" / "left").write_text("over")
    old = (tmp_path / "log").stat().st_ino
    hold = (tmp_path / "log").open()  # so that its number is not given out again
    write_claim(tmp_path, START, UID, GID)
    assert not (tmp_path / "claim" / "left").exists()
    assert (tmp_path / "log").stat().st_ino != old
    hold.close()


@pytest.mark.parametrize("name", ["run", "log"])
def test_what_ran_is_not_claimed_again(tmp_path: Path, name: str) -> None:
    write_claim(tmp_path, START, UID, GID)
    (tmp_path / name).write_text("started")
    with pytest.raises(AlreadyRanError):
        write_claim(tmp_path, START, UID, GID)


def test_a_start_is_settled_once(tmp_path: Path) -> None:
    write_claim(tmp_path, START, UID, GID)
    assert settle(tmp_path) is True
    assert settle(tmp_path) is False
    assert (tmp_path / "run").exists()


def test_of_two_that_settle_at_once_one_does(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            write_claim(tmp_path, START, UID, GID)
            assert sorted(pool.map(settle, [tmp_path, tmp_path])) == [False, True]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_a_command_puts_in_its_place_settles_nothing(tmp_path: Path, kind: str) -> None:
    write_claim(tmp_path, START, UID, GID)
    run = tmp_path / "claim" / "run"
    run.unlink()  # as a keeper does
    match kind:
        case "file":
            run.touch()
        case "directory":
            (run / "deeper").mkdir(parents=True)
        case _:
            run.symlink_to(tmp_path / "run")
    assert settle(tmp_path) is False
    assert (tmp_path / "run").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim", "log", "run"]


def test_without_a_claim_nothing_is_settled(tmp_path: Path) -> None:
    assert settle(tmp_path) is False


@pytest.mark.parametrize(
    ("argv", "environment", "fault"),
    [
        pytest.param((), {}, "command: empty", id="nothing to run"),
        pytest.param(("a", "b\0"), {}, "command[1]: holds a NUL", id="NUL in an argument"),
        pytest.param((b"\0",), {}, "command[0]: holds a NUL", id="NUL in bytes"),
        pytest.param(("a",), {"N": "\0"}, "environment['N']: holds a NUL", id="NUL in a value"),
        pytest.param(("a",), {"N\0": ""}, "environment['N\\x00']: holds", id="NUL in a name"),
        pytest.param(("a",), {"": "v"}, "environment['']: no name", id="no name"),
        pytest.param(("a",), {"A=B": "v"}, "environment['A=B']: no name", id="a name with ="),
        pytest.param(("\ud800",), {}, "command[0]: no valid text", id="half a character"),
        pytest.param(("x" * (MAX_STRING_BYTES + 1),), {}, "command[0]: 131072 bytes", id="long"),
        pytest.param(("a",), {"N": "x" * MAX_STRING_BYTES}, "environment['N']: 13", id="long=..."),
        pytest.param(("x" * 100_000,) * 20, {}, "in all", id="too much in all"),
        pytest.param(("",) * 300_000, {}, "in all", id="too many"),
        pytest.param(("x" * MAX_STRING_BYTES,), {"N": "v"}, None, id="the longest"),
        pytest.param(("ä",), {"N": ""}, None, id="plain"),
    ],
)
def test_what_the_kernel_would_refuse_is_named(
    argv: tuple[str | bytes, ...], environment: dict[str, str], fault: str | None
) -> None:
    found = start_fault(argv, environment)
    if fault is None:
        assert found is None
        return
    assert found is not None
    assert fault in found
    with pytest.raises(ValueError, match=r"command|environment"):
        Start(argv, environment, 1, 1)


def test_a_value_is_never_shown() -> None:
    found = start_fault(("a",), {"TOKEN": "s3cret\0"})
    assert found is not None
    assert "s3cret" not in found


@pytest.mark.parametrize("bytes_", [-1, 10**18])
def test_absurd_limits_are_refused(bytes_: int) -> None:
    with pytest.raises(ValueError, match="log_limit_bytes"):
        Start(("a",), {}, bytes_, 1)
    with pytest.raises(ValueError, match="file_limit_bytes"):
        Start(("a",), {}, 1, bytes_)


def test_the_sum_counts_each_nul_and_pointer() -> None:
    each = 100_000 - 9
    assert start_fault(("x" * each,) * (MAX_START_BYTES // 100_000), {}) is None
    assert start_fault(("x" * each,) * (MAX_START_BYTES // 100_000) + ("",), {}) is not None
