"""The bell at a run record."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.bells import Bells
from shared.taskdir import RUN, TaskKey

KEY = TaskKey("t", 1)


@pytest.fixture
def bells() -> Iterator[Bells]:
    made = Bells()
    yield made
    made.close()


def write(directory: Path) -> None:
    with (directory / RUN).open("ab") as file:
        file.write(b"x")


def watches(bells: Bells) -> int:
    """The kernel's own count."""
    return Path(f"/proc/self/fdinfo/{bells.fileno()}").read_text().count("inotify wd:")


def test_it_rings_for_the_one_that_wrote(bells: Bells, tmp_path: Path) -> None:
    (tmp_path / RUN).touch()
    bells.hang(KEY, tmp_path)
    assert bells.rung() == set()
    write(tmp_path)
    assert bells.rung() == {KEY}


def test_taken_down_it_is_gone_from_the_kernel_too(bells: Bells, tmp_path: Path) -> None:
    (tmp_path / RUN).touch()
    bells.hang(KEY, tmp_path)
    assert watches(bells) == 1
    bells.take_down(KEY)
    assert watches(bells) == 0
    write(tmp_path)
    assert bells.rung() == set()


def test_hung_again_for_a_new_record_the_old_one_is_gone(bells: Bells, tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / RUN).unlink(missing_ok=True)
        (tmp_path / RUN).touch()
        bells.hang(KEY, tmp_path)
    assert watches(bells) == 1
    bells.rung()
    write(tmp_path)
    assert bells.rung() == {KEY}


def test_without_a_record_there_is_no_bell_and_no_fault(bells: Bells, tmp_path: Path) -> None:
    bells.hang(KEY, tmp_path)
    assert bells.rung() == set()
