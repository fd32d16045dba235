"""What the keeper does with an ordinary command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.keeper_build import ensure_keeper
from tests.executor.keeper_kit import Attempt


@pytest.fixture(scope="session")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_keeper(tmp_path_factory.mktemp("keeper"))


@pytest.fixture
def attempt(keeper: Path, tmp_path: Path) -> Iterator[Attempt]:
    attempt = Attempt(keeper, tmp_path)
    yield attempt
    attempt.close()


def test_a_command_runs_and_its_output_and_end_are_recorded(attempt: Attempt) -> None:
    attempt.claim(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert attempt.run() == 3
    assert attempt.output(1) == b"out\n"
    assert attempt.output(2) == b"err\n"
    record = attempt.record
    assert record.started is not None
    assert record.failed_errno is None
    assert record.ended is not None
    assert (record.ended.code, record.ended.signal) == (3, 0)
