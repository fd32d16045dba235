"""What is sent of `--input`."""

import os
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from procs.client.core import Malformed
from procs.client.inputs import gather


def test_a_directory_is_an_archive_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "b").write_bytes(b"bb")
    (folder / "b").chmod(0o755)
    os.link(folder / "b", folder / "hard")
    (folder / "soft").symlink_to("b")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    with ExitStack() as stack:
        (one,) = gather([folder], stack)
        assert (one.path, one.unpack) == ("folder", True)
        with tarfile.open(fileobj=one.content, mode="r:gz") as tar:
            assert tar.getnames() == ["b", "hard", "soft", "sub", "sub/empty"]
            assert all(entry.isreg() or entry.isdir() for entry in tar)
            for name in ("b", "hard", "soft"):
                content = tar.extractfile(name)
                assert content is not None
                assert content.read() == b"bb"
            assert tar.getmember("b").mode & 0o777 == 0o755


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"not unpacked")
    with ExitStack() as stack:
        (one,) = gather([tmp_path / "a.tar.gz"], stack)
        assert (one.path, one.unpack, one.size_bytes) == ("a.tar.gz", False, 12)
        assert one.content.read() == b"not unpacked"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        pytest.param(["missing"], "No such file", id="missing"),
        pytest.param(["a/x", "b/x"], "another input is called x", id="same name"),
        pytest.param(["fifo"], "neither a file nor a directory", id="fifo"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, names: list[str], text: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    with ExitStack() as stack, pytest.raises(Malformed, match=text):
        gather([tmp_path / name for name in names], stack)
