"""The fixtures of the keeper's tests: its binary, a hostile command, an attempt."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.keeper_build import ensure_keeper
from tests.executor.keeper_kit import Attempt

HOSTILE = Path(__file__).with_name("hostile.c")


@pytest.fixture(scope="session")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_keeper(tmp_path_factory.mktemp("keeper"))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("hostile") / "hostile"
    subprocess.run(["cc", "-static", "-O1", "-Wall", "-o", binary, HOSTILE], check=True)
    return binary


@pytest.fixture
def attempt(keeper: Path, hostile: Path, tmp_path: Path) -> Iterator[Attempt]:
    attempt = Attempt(keeper, hostile, tmp_path)
    yield attempt
    attempt.close()
