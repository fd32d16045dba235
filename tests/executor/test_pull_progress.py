"""How far a pull is, from lines as Docker said them."""

from typing import Any

import pytest

from procs.executor.pull_progress import Progress


def line(layer: str, status: str, current: int | None = None, total: int = 0) -> dict[str, Any]:
    detail = {} if current is None else {"current": current, "total": total}
    return {"status": status, "progressDetail": detail, "id": layer}


# Docker 20.10: a small layer and a large one, the second cut off once; `total` is then the rest
RECORDED: list[tuple[dict[str, Any], bool, int]] = [
    (line("1", "Pulling from a"), False, 0),  # the tag, not a layer
    (line("a", "Pulling fs layer"), True, 0),
    (line("b", "Pulling fs layer"), True, 0),
    (line("b", "Waiting"), False, 0),
    (line("a", "Downloading", 10, 100), True, 2),
    (line("a", "Downloading", 10, 100), False, 2),
    (line("a", "Downloading", 100, 100), False, 2),
    (line("a", "Verifying Checksum"), True, 25),
    (line("a", "Download complete"), True, 25),
    (line("b", "Downloading", 100, 900), True, 25),
    (line("b", "Downloading", 300, 900), True, 25),
    (line("b", "Downloading", 900, 900), False, 25),  # said when it was cut
    (line("b", "Retrying in 5 seconds"), False, 25),
    (line("b", "Retrying in 4 seconds"), False, 25),
    (line("b", "Downloading", 20, 600), True, 25),
    (line("b", "Downloading", 500, 600), True, 45),
    (line("b", "Verifying Checksum"), True, 50),
    (line("b", "Download complete"), True, 50),
    (line("a", "Extracting", 50, 100), True, 52),
    (line("a", "Extracting", 50, 100), False, 52),
    (line("a", "Extracting", 100, 100), True, 55),
    (line("a", "Pull complete"), True, 55),
    (line("b", "Extracting", 450, 900), True, 77),
    (line("b", "Extracting", 900, 900), True, 100),
    (line("b", "Pull complete"), True, 100),
    ({"status": "Digest: sha256:12"}, False, 100),
    ({"status": "Status: Downloaded newer image for a:1"}, False, 100),
]


def test_a_pull_as_it_was_recorded() -> None:
    progress = Progress()
    for number, (said, moved, percent) in enumerate(RECORDED):
        assert (progress.note(said), progress.percent) == (moved, percent), (number, said)


def test_it_never_goes_back_or_past_its_end() -> None:
    """A layer whose size becomes known late, is greater than was thought, and is begun again."""
    progress = Progress()
    shown = []
    for said in (
        line("a", "Pulling fs layer"),
        line("b", "Pulling fs layer"),
        line("a", "Downloading", 9, 10),
        line("b", "Downloading", 1, 1000),
        line("b", "Downloading", 900, 1000),
        line("b", "Downloading", 1, 1000),
        line("b", "Extracting", 2000, 1000),
        line("a", "Extracting", 20, 10),
        line("b", "Pull complete"),
        line("a", "Pull complete"),
    ):
        progress.note(said)
        shown.append(progress.percent)
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0, 100)


def test_layers_that_are_here_already_count_as_nothing() -> None:
    progress = Progress()
    assert not progress.note(line("a", "Already exists"))
    progress.note(line("b", "Pulling fs layer"))
    progress.note(line("b", "Downloading", 5, 10))
    assert progress.percent == 25


@pytest.mark.parametrize("total", [0, -1])
def test_an_unknown_size_moves_and_shows_nothing(total: int) -> None:
    progress = Progress()
    progress.note(line("a", "Pulling fs layer"))
    assert progress.note(line("a", "Downloading", 1, total))
    assert progress.note(line("a", "Downloading", 2, total))
    assert progress.percent == 0
    assert progress.note(line("a", "Download complete"))
    assert progress.percent == 0, "no size is known: half of what?"


def test_seconds_of_unpacking_move_it_too() -> None:
    """The containerd store counts seconds, without a total."""
    progress = Progress()
    progress.note(line("a", "Pulling fs layer"))
    for second in (1, 2):
        detail = {"current": second, "units": "s"}
        assert progress.note({"status": "Extracting", "id": "a", "progressDetail": detail})


@pytest.mark.parametrize(
    "said",
    [
        {}, {"status": None}, {"status": "Downloading"}, {"id": "a"},
        line("never announced", "Downloading", 1, 2),
        {"status": "Downloading", "id": "a", "progressDetail": None},
    ],
)  # fmt: skip
def test_lines_that_say_nothing(said: dict[str, Any]) -> None:
    progress = Progress()
    progress.note(line("a", "Pulling fs layer"))
    progress.note(line("a", "Downloading", 0, 2))
    assert not progress.note(said)
    assert progress.percent == 0
