"""Which alerts a report tells, and that each end is told once."""

import msgspec
import pytest

from procs.master_link.alert_book import GONE_AFTER_S, MOST, AlertBook
from shared.messages import Alert

HOT = Alert(rule="heat", subject="s", value=99.0, threshold=90.0, raised_unix_s=1003.0)


def over(at_unix_s: float) -> Alert:
    return msgspec.structs.replace(HOT, cleared_unix_s=at_unix_s)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(1004, [HOT], [])], [HOT], id="it stands"),
        pytest.param([(1004, [HOT], []), (1009, [], [over(1008)])], [over(1008)], id="it ended"),
        pytest.param([(1004, [HOT], []), (1009, [], [])], [over(1009)], id="and nobody says when"),
        pytest.param([(1009, [], [over(1008)])], [over(1008)], id="rose and ended unheard"),
        pytest.param([(1009, [], [over(999)])], [], id="ended before, which the last one told"),
        pytest.param(
            [(1004, [HOT], []), (1008, [], [over(1008)]), (1009, [], [over(1008)])],
            [over(1008)], id="it ended, said again",
        ),
        pytest.param(
            [(1004, [HOT], []), (5, [], [over(5)])], [over(5)], id="the clock was set back"
        ),
    ],
)  # fmt: skip
def test_what_a_report_tells(
    words: list[tuple[float, list[Alert], list[Alert]]], told: list[Alert]
) -> None:
    book = AlertBook(1000.0)
    for now_unix_s, raised, cleared in words:
        book.hear("host", raised, cleared, now_unix_s)
    assert book.close(1030.0) == told
    standing = [alert for alert in told if alert.cleared_unix_s is None]
    assert book.close(1060.0) == standing, "an end is told once"


def test_an_end_that_is_still_spoken_of_is_not_told_again() -> None:
    book = AlertBook(1000.0)
    book.hear("host", [HOT], [], 1004.0)
    book.hear("host", [], [over(1008.0)], 1008.0)
    assert book.close(1030.0) == [over(1008.0)]
    for now_unix_s in (1031.0, 1032.0):
        book.hear("host", [], [over(1008.0)], now_unix_s)
    assert book.close(1060.0) == []


def test_an_end_that_lies_ahead_is_told_once() -> None:
    book = AlertBook(1000.0)
    for to_unix_s, told in ((1030.0, [over(9000.0)]), (1060.0, [])):  # the clock was set back
        book.hear("host", [], [over(9000.0)], to_unix_s)
        assert book.close(to_unix_s) == told


def test_silence_ends_nothing_unless_it_is_for_long() -> None:
    book = AlertBook(1000.0)
    book.hear("gpu0", [HOT], [], 1004.0)
    assert book.close(1004.0 + GONE_AFTER_S - 1) == [HOT]
    ended = 1004.0 + GONE_AFTER_S
    assert book.close(ended) == [over(ended)]
    assert book.close(ended + 30.0) == []


def test_a_report_has_a_bound() -> None:
    book = AlertBook(0.0)
    for at in range(MOST + 10):
        book.hear("host", [msgspec.structs.replace(HOT, raised_unix_s=float(at))], [], at)
    book.hear("host", [], [], MOST + 10)
    told = book.close(5000.0)
    assert len(told) == MOST
    assert told[-1].raised_unix_s == MOST + 9, "the newest"
