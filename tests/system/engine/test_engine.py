"""The private engine of the tests keeps its own promises."""

import subprocess
from pathlib import Path

import pytest

from tests.system.engine.private import EngineScriptError, PrivateEngine

pytestmark = pytest.mark.docker


def _answers(engine: PrivateEngine) -> bool:
    done = subprocess.run(["docker", "--host", engine.host, "info"], capture_output=True)
    return done.returncode == 0


def _processes_naming(folder: Path) -> list[str]:
    lines = (_command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [line for line in lines if f"{folder}/" in line]


def _command_line(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return ""


def test_an_engine_that_runs_is_left_alone(engine: PrivateEngine) -> None:
    pid = (engine.folder / "docker.pid").read_text()
    engine.start()
    assert (engine.folder / "docker.pid").read_text() == pid
    assert _answers(engine)


def test_a_killed_engine_starts_again(engine: PrivateEngine) -> None:
    engine.kill()
    assert not _answers(engine)
    engine.start()
    assert _answers(engine)


def test_nothing_is_left_of_a_purged_engine_even_when_it_was_killed() -> None:
    other = PrivateEngine(Path("/tmp/hme-purged"))
    other.start()
    other.kill()
    other.stop("--purge")
    assert not other.folder.exists()
    assert _processes_naming(other.folder) == []
    assert str(other.folder) not in Path("/proc/self/mountinfo").read_text()


def test_a_folder_with_a_long_path_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineScriptError, match="too long"):
        PrivateEngine(tmp_path / ("x" * 60)).start()
