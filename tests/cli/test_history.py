"""`hivemind-worker history` and `debug`, as processes, on a home that no worker runs in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from procs.cli.history import unix_s
from shared.history import SearchError
from shared.messages import TaskPhase
from tests.fakes.history import Ended, write_history

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    now = time.time()
    write_history(
        tmp_path / "lib" / "executor.db",
        Ended("good", TaskPhase.SUCCEEDED, now - 7200, ran_s=61),
        Ended("bad", TaskPhase.FAILED, now - 60, attempt=2, exit_code=3, command="a\x1b[2Jb",
              error="the command exited 3; its log says why"),
    )  # fmt: skip
    (tmp_path / "debug" / "bad.2").mkdir(parents=True)
    (tmp_path / "kept" / "bad.2").mkdir(parents=True)
    (tmp_path / "kept" / "bad.2" / "log").touch()
    return tmp_path


def ask(home: Path, *arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "procs.cli", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HIVEMIND_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_for_people(home: Path) -> None:
    code, out, err = ask(home, "history")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "bad.2                failed, 1 min ago, ran 1 s, exit code 3",
        "    python:3.11  a\\x1b[2Jb",
        "    the command exited 3; its log says why",
        f"    what is left of it: {home}/debug/bad.2",
        "good.1               succeeded, 2 h ago, ran 1 min, exit code 0",
        "    python:3.11  python3 train.py",
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["bad.2", "good.1"]),
        (("train",), ["good.1"]),
        (("exited", "3"), ["bad.2"]),
        (("--state", "succeeded"), ["good.1"]),
        (("--state", "succeeded", "--state", "failed"), ["bad.2", "good.1"]),
        (("--since", "1h"), ["bad.2"]),
        (("--limit", "1"), ["bad.2"]),
        (("nowhere",), []),
    ],
)
def test_for_programs(home: Path, arguments: tuple[str, ...], names: list[str]) -> None:
    code, out, _ = ask(home, "history", "--json", *arguments)
    assert code == 0
    assert [task["directory"] for task in json.loads(out)] == names


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("history", "--state", "lost"), 2, "--state must be succeeded or failed or"),
        (("history", "--since", "soon"), 2, "--since must be like 90m, 2d or"),
        (("history", "--limit", "0"), 2, "limit must be between 1 and"),
        (("debug", "good"), 1, "nothing is left of good: of tasks that failed it is kept for"),
    ],
)
def test_what_can_not_be_shown_is_one_line(
    home: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = ask(home, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"hivemind-worker: {said}")
    assert len(err.splitlines()) == 1


def test_no_history_yet(tmp_path: Path) -> None:
    said = f"hivemind-worker: there is no history in {tmp_path}\n"
    assert ask(tmp_path, "history") == (1, "", said)


def test_debug_names_the_folder_and_the_log(home: Path) -> None:
    said = f"{home}/debug/bad.2\n    its log: {home}/kept/bad.2/log\n"
    for name in ("bad", "bad.2"):
        assert ask(home, "debug", name) == (0, said, "")


@pytest.mark.parametrize(
    ("text", "unix"),
    [("90m", 10_000 - 5400), ("1w", 10_000 - 604_800), ("1970-01-01T00:00:07+00:00", 7)],
)
def test_since(text: str, unix: float) -> None:
    assert unix_s(text, 10_000) == unix


@pytest.mark.parametrize("text", ["90", "m", "yesterday", "2026-13-01", "9" * 9 + "d"])
def test_since_that_is_none(text: str) -> None:
    with pytest.raises(SearchError):
        unix_s(text, 10_000)
