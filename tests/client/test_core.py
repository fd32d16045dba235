"""What the client decides."""

from typing import Any

import pytest

from procs.client.core import (
    Malformed,
    duration_s,
    entry_parts,
    exit_code,
    pairs,
    size_bytes,
    summary,
)
from procs.client.tables import age


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("17", 17),
        ("512m", 512 * 2**20),
        ("2g", 2 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("1KB", 1024),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("0.5s", 0.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert duration_s(text) == value


@pytest.mark.parametrize("text", ["", "-1", "m", "1x", "1 2", "ten"])
def test_what_is_no_size_or_duration_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        size_bytes(text)
    with pytest.raises(Malformed):
        duration_s(text)


def test_pairs() -> None:
    assert pairs(["A=1", "B=x=y", "C="], "--env") == {"A": "1", "B": "x=y", "C": ""}
    for wrong in (["A"], ["=1"], ["A=1", "A=2"]):
        with pytest.raises(Malformed, match="--env"):
            pairs(wrong, "--env")


def ended(state: str = "failed", code: int | None = 0, **more: Any) -> dict[str, Any]:
    task = {"task_id": "t", "state": state, "exit_code": code, "reward": 8, "error": ""}
    return task | more


@pytest.mark.parametrize(
    ("task", "code"),
    [
        pytest.param(ended("succeeded"), 0, id="success"),
        pytest.param(ended(code=3), 3, id="its own"),
        pytest.param(ended("timed_out", 143), 143, id="timed out, as reported"),
        pytest.param(ended("cancelled", 137), 137, id="cancelled, as reported"),
        pytest.param(ended(code=-1, cause="start"), 127, id="could not be started"),
        pytest.param(ended(code=126, cause="start"), 126, id="as reported: no right to start it"),
        pytest.param(ended(code=-1, cause="image"), 125, id="no image"),
        pytest.param(ended(code=None), 125, id="refused by every node"),
        pytest.param(ended("out_of_disk", 0), 125, id="ended from outside, says 0"),
    ],
)
def test_exit_codes(task: dict[str, Any], code: int) -> None:
    assert exit_code(task) == code


def test_the_end_in_one_line() -> None:
    assert summary(ended("timed_out", 143)) == "t timed out, exit code 143, reward 8"
    task = ended(code=None, reward=None, error="TOO_LARGE: cpus")
    assert summary(task) == "t failed: TOO_LARGE: cpus"


@pytest.mark.parametrize(
    ("name", "parts"), [("a/b", ["a", "b"]), ("./a//b/", ["a", "b"]), ("./", []), ("..a", ["..a"])]
)
def test_entries_below_the_output(name: str, parts: list[str]) -> None:
    assert entry_parts(name) == parts


@pytest.mark.parametrize("name", ["/a", "..", "../a", "a/../../b", "a/..", "a\0b"])
def test_entries_that_would_leave_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        entry_parts(name)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59.4, "59s"), (60, "1m"), (7199, "1h"), (200_000, "2d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text
