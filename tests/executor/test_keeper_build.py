"""The keeper's binary is built once, named and checked by its source."""

import subprocess
from pathlib import Path

import pytest

from procs.executor import keeper_build
from procs.executor.keeper_build import (
    FLAGS,
    SOURCE,
    KeeperBuildError,
    ensure_keeper,
    source_digest,
)


def test_it_is_built_once_and_says_what_it_is(tmp_path: Path) -> None:
    binary = ensure_keeper(tmp_path / "new")
    assert binary.name == f"keeper-{source_digest()}"
    assert binary.stat().st_mode & 0o777 == 0o755
    version = subprocess.run([binary, "--version"], capture_output=True, check=True).stdout
    assert version.decode().strip() == source_digest()
    before = binary.stat()
    assert ensure_keeper(tmp_path / "new").stat() == before
    assert [path.name for path in binary.parent.iterdir()] == [binary.name]


@pytest.mark.parametrize("content", [b"", b"\x7fELF broken", b"#!/bin/sh\necho other\n"])
def test_a_broken_binary_is_replaced(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / f"keeper-{source_digest()}"
    broken.write_bytes(content)
    broken.chmod(0o755)
    assert ensure_keeper(tmp_path) == broken
    version = subprocess.run([broken, "--version"], capture_output=True, check=True).stdout
    assert version.decode().strip() == source_digest()


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KeeperBuildError, match="install gcc"):
        ensure_keeper(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_compiler_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "keeper.c"
    broken.write_text("int main(void) { return nothing; }")
    monkeypatch.setattr(keeper_build, "SOURCE", broken)
    with pytest.raises(KeeperBuildError, match="nothing"):
        ensure_keeper(tmp_path / "to")


def test_a_binary_shipped_for_this_source_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = ensure_keeper(tmp_path / "shipped")
    monkeypatch.setattr(keeper_build, "SHIPPED", shipped)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ensure_keeper(tmp_path / "to").read_bytes() == shipped.read_bytes()


def test_it_compiles_without_a_warning_at_every_level(tmp_path: Path) -> None:
    for level in ("-O0", "-O2", "-O3"):
        flags = [*FLAGS, level, "-Wshadow", "-Wconversion"]
        target = tmp_path / "keeper"
        subprocess.run(["cc", *flags, "-o", target, SOURCE], check=True)
