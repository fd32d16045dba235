"""Inputs: verified, and unpacked without a way out."""

import gzip
import hashlib
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zstandard

from procs.executor import prepare
from procs.executor.prepare import BLOBS, InputError, lay_out, missing
from shared.taskdir import MIB, InputSpec, Spec

TarEntry = tuple[str, bytes | None, str]  # name, content or None for a folder, link target


def tar(*entries: TarEntry, mode: str = "w:gz") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content, link in entries:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            elif content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return raw.getvalue()


def zipped(**entries: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return raw.getvalue()


class Inputs:
    """A task's directory with inputs that have come."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wanted: list[InputSpec] = []
        (directory / BLOBS).mkdir()

    def add(self, path: str, content: bytes, *, unpack: bool = False, digest: str = "") -> None:
        (self.directory / BLOBS / str(len(self.wanted))).write_bytes(content)
        digest = digest or hashlib.sha256(content).hexdigest()
        self.wanted.append(
            InputSpec(path=path, size_bytes=len(content), sha256=digest, unpack=unpack)
        )

    @property
    def spec(self) -> Spec:
        return Spec(task_id="t", attempt=1, image="i", inputs=tuple(self.wanted))

    def lay_out(self, limit: int = MIB) -> Path:
        lay_out(self.directory, self.spec, limit)
        return self.directory / "input"


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def test_files_lie_where_the_assignment_says(inputs: Inputs) -> None:
    inputs.add("a.txt", b"one")
    inputs.add("d/e/b.bin", b"\0\xff")
    inputs.add("empty", b"")
    root = inputs.lay_out()
    assert (root / "a.txt").read_bytes() == b"one"
    assert (root / "d/e/b.bin").read_bytes() == b"\0\xff"
    assert (root / "empty").read_bytes() == b""
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "a.txt").stat().st_mode) == 0o644


def test_laid_out_twice_is_the_same(inputs: Inputs) -> None:
    inputs.add("a.txt", b"one")
    inputs.lay_out()
    assert [p.name for p in inputs.lay_out().iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(tar(("d", None, ""), ("d/x", b"hi", "")), id="tar.gz"),
        pytest.param(tar(("./d/x", b"hi", ""), mode="w"), id="tar"),
        pytest.param(zstandard.compress(tar(("d/x", b"hi", ""), mode="w")), id="tar.zst"),
        pytest.param(zipped(**{"d/": "", "d/x": "hi"}), id="zip"),
    ],
)
def test_archives_are_unpacked_at_their_path(inputs: Inputs, content: bytes) -> None:
    inputs.add("here", content, unpack=True)
    assert (inputs.lay_out() / "here/d/x").read_bytes() == b"hi"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(tar(("../x", b"", "")), "would leave", id="tar, dots"),
        pytest.param(tar(("/etc/x", b"", "")), "would leave", id="tar, absolute"),
        pytest.param(zipped(**{"a/../../x": ""}), "would leave", id="zip, dots"),
        pytest.param(
            tar(("a", b"", ""), ("a/b", b"", "")), "a file and a folder", id="file as folder"
        ),
        pytest.param(b"neither", "can't be unpacked", id="garbage"),
        pytest.param(tar(("a", b"x" * 5000, ""))[:40], "can't be unpacked", id="cut"),
        pytest.param(tar(("a", b"x" * (2 * MIB), "")), "larger than", id="bomb"),
    ],
)
def test_a_bad_archive_is_refused(
    inputs: Inputs, tmp_path: Path, content: bytes, reason: str
) -> None:
    inputs.add("z", content, unpack=True)
    with pytest.raises(InputError, match=reason):
        inputs.lay_out()
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_through_a_link(inputs: Inputs, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inputs.add("z", tar(("l", None, str(outside)), ("l/x", b"no", "")), unpack=True)
    root = inputs.lay_out()
    assert list(outside.iterdir()) == []
    assert (root / "z/l/x").read_bytes() == b"no"


def test_a_link_of_an_archive_is_kept(inputs: Inputs) -> None:
    inputs.add("z", tar(("l", None, "x"), ("x", b"yes", "")), unpack=True)
    assert (inputs.lay_out() / "z/l").read_bytes() == b"yes"


def test_another_content_is_refused(inputs: Inputs) -> None:
    inputs.add("a", b"one", digest="00" * 32)
    with pytest.raises(InputError, match="SHA-256"):
        inputs.lay_out()


def test_another_size_is_refused(inputs: Inputs) -> None:
    inputs.add("a", b"one")
    (inputs.directory / BLOBS / "0").write_bytes(b"longer")
    with pytest.raises(InputError, match="has 6 bytes, the assignment says 3"):
        inputs.lay_out()


def test_a_path_that_is_file_and_folder_is_refused(inputs: Inputs) -> None:
    inputs.add("a", b"one")
    inputs.add("a/b", b"two")
    with pytest.raises(InputError, match="a file and a folder"):
        inputs.lay_out()


def test_what_has_not_come_is_missing_until_it_comes(inputs: Inputs) -> None:
    inputs.add("a", b"one")
    blob = inputs.directory / BLOBS / "0"
    blob.rename(blob.with_suffix(".part"))
    assert missing(inputs.directory, inputs.spec)
    blob.with_suffix(".part").rename(blob)
    assert not missing(inputs.directory, inputs.spec)


def test_what_never_comes_says_why(inputs: Inputs) -> None:
    inputs.add("a", b"one")
    (inputs.directory / BLOBS / "0").unlink()
    (inputs.directory / BLOBS / "0.missing").write_text("the master does not have it")
    with pytest.raises(InputError, match="input 'a': the master does not have it"):
        missing(inputs.directory, inputs.spec)


def test_a_link_that_no_file_system_takes_is_the_archives_fault(inputs: Inputs) -> None:
    inputs.add("a", tar(("x", None, "y" * 5000)), unpack=True)
    with pytest.raises(InputError, match="can't be unpacked"):
        inputs.lay_out()


def test_a_link_with_a_nul_is_the_archives_fault(inputs: Inputs) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"a\0b")
    inputs.add("a", raw.getvalue(), unpack=True)
    with pytest.raises(InputError, match="can't be unpacked"):
        inputs.lay_out()


def test_a_header_that_would_fill_the_memory_is_refused(inputs: Inputs) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    inputs.add("a", info.tobuf() + bytes(10240), unpack=True)
    with pytest.raises(InputError, match="a header of 1073741824 bytes"):
        inputs.lay_out()


def with_headers(count: int, size: int, kind: bytes, text: str = "") -> bytes:
    """A tar whose entries are empty and have large headers; `kind`: of each, or for all."""
    raw = io.BytesIO()
    for number in range(count):
        info, texts = tarfile.TarInfo(f"f{number}"), {f"k{number}": text + "x" * size}
        if kind == tarfile.XGLTYPE:
            raw.write(tarfile.TarInfo.create_pax_global_header(texts))
        else:
            info.pax_headers = texts
        raw.write(info.tobuf(tarfile.PAX_FORMAT))
    return gzip.compress(raw.getvalue())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["of each", "for all"])
def test_an_archives_headers_are_not_held_together(inputs: Inputs, kind: bytes) -> None:
    inputs.add("a", with_headers(300, 15_000, kind), unpack=True)
    tracemalloc.start()
    try:
        inputs.lay_out()
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB  # they are over 4
    finally:
        tracemalloc.stop()


def many_links() -> bytes:
    return tar(*((f"l{n}", None, "x" * 4000) for n in range(5000)))


def sparse_with_a_map_without_end() -> bytes:
    info = tarfile.TarInfo("s")
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:482] = b"00000000001\0" * 8
    head[482] = 1  # more of it follows
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return gzip.compress(bytes(head) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 1000)


def sparse_with_its_map_in_the_content() -> bytes:
    info = tarfile.TarInfo("s")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"999999999\n" + b"1\n" * 4096


def zip_with_a_large_directory() -> bytes:
    size = prepare.LARGEST_DIRECTORY_BYTES + 1
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, size, 4, 0)
    return b"PK\3\4" + bytes(size) + end


def zip_by(method: int) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        archive.writestr("x", b"ab" * 500)
    return raw.getvalue()


def damaged(content: bytes, at: int, to: bytes) -> bytes:
    return content[:at] + to + content[at + len(to) :]


def without_its_content(content: bytes) -> bytes:
    """A .zip whose one entry is said to lie where nothing is left."""
    return damaged(content, content.index(b"PK\1\2") + 42, struct.pack("<I", len(content) - 9))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(sparse_with_a_map_without_end(), "a sparse file", id="sparse"),
        pytest.param(sparse_with_its_map_in_the_content(), "a sparse file", id="sparse 1.0"),
        pytest.param(with_headers(1, 0, tarfile.XHDTYPE, "7" * 15_000), "digits", id="digits"),
        pytest.param(tar(("a/" * 101 + "x", b"", "")), "100 folders deep", id="deep"),
        pytest.param(many_links(), "links of over", id="links"),
        pytest.param(zip_with_a_large_directory(), "a directory of", id="zip, directory"),
        pytest.param(zip_by(zipfile.ZIP_LZMA), "in a rare way", id="zip, LZMA"),
        pytest.param(damaged(zip_by(zipfile.ZIP_DEFLATED), 31, b"\xff" * 5), "", id="zip, content"),
        pytest.param(without_its_content(zip_by(zipfile.ZIP_STORED)), "", id="zip, no content"),
        pytest.param(b"\x1f\x8b\x08\x04" + bytes(7), "", id="gzip, cut in its head"),
    ],
)
def test_what_would_fill_the_memory_or_end_the_process_is_refused(
    inputs: Inputs, content: bytes, reason: str
) -> None:
    inputs.add("z", content, unpack=True)
    with pytest.raises(InputError, match=f"can't be unpacked.*{reason}"):
        inputs.lay_out()


def test_a_tasks_inputs_have_so_many_entries_together(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MOST_ENTRIES", 8)
    inputs.add("a", tar(("d/e/x", b"", "")), unpack=True)
    inputs.add("b", tar(("l", None, "x")), unpack=True)
    inputs.lay_out()
    inputs.add("c", tar(("d/e/x", b"", "")), unpack=True)
    with pytest.raises(InputError, match="over 8 files and folders"):
        inputs.lay_out()
