"""Unpacking a stranger's archive: nothing leaves the directory."""

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from procs.client.output import OutputError, download, extract


def entry(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in more.items():
        setattr(made, field, value)
    return made


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for one, content in entries:
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    target.seek(0)
    return target


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_files_and_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    made = archive(
        (entry("./"), b""),
        (entry("a", mode=0o4755), b"new"),
        (entry("deep/er/b"), b"\x00b"),
        (entry("empty", tarfile.DIRTYPE), b""),
    )
    assert extract(made, tmp_path) == 2
    assert (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755  # no set-id bit
    assert (tmp_path / "deep/er/b").read_bytes() == b"\x00b"
    assert (tmp_path / "empty").is_dir()
    assert names(tmp_path) == ["a", "deep", "empty"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-the-test", "a/../../evil"])
def test_an_entry_that_would_leave_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with pytest.raises(OutputError, match="would leave"):
        extract(archive((entry(name), b"x")), inside)
    assert names(tmp_path) == ["in"]
    assert not Path("/tmp/evil-of-the-test").exists()


def test_links_are_not_made_nor_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    links = archive(
        (entry("soft", tarfile.SYMTYPE, linkname=str(outside)), b""),
        (entry("hard", tarfile.LNKTYPE, linkname="/etc/passwd"), b""),
        (entry("fifo", tarfile.FIFOTYPE), b""),
        (entry("null", tarfile.CHRTYPE), b""),
    )
    assert extract(links, inside) == 0
    assert names(inside) == []
    (inside / "own").symlink_to(outside)  # the directory held it before
    with pytest.raises(OutputError, match="cannot write"):
        extract(archive((entry("own/x"), b"x")), inside)
    assert names(outside) == []
    assert extract(archive((entry("own"), b"replaced")), inside) == 1
    assert (inside / "own").read_text() == "replaced"
    assert not (inside / "own").is_symlink()


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    whole = archive((entry("a"), os.urandom(100_000))).getvalue()
    for broken in (b"no archive", whole[:5000]):
        with pytest.raises(OutputError, match="broken"):
            extract(io.BytesIO(broken), tmp_path)
    assert names(tmp_path) == []


def test_the_digest_is_checked() -> None:
    target = io.BytesIO()
    download([b"a", b"b"], hashlib.sha256(b"ab").hexdigest(), target)
    assert target.read() == b"ab"
    with pytest.raises(OutputError, match="not the one"):
        download([b"a"], hashlib.sha256(b"ab").hexdigest(), io.BytesIO())
