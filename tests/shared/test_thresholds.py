"""Thresholds: when an alert is raised, stays, and goes; and what is told of it afterwards."""

import math

import pytest

from shared.messages import Alert
from shared.thresholds import CLEARED_KEPT_S, Rule, Watches, alerts, cleared, next_watches

RULES = (Rule("heat", 50.0, 40.0, 10.0), Rule("disk", 95.0, 92.0, 0.0))


def judged(watches: Watches, now_s: float, now_unix_s: float, **values: float) -> Watches:
    return next_watches(watches, values, "attic", now_s, now_unix_s, RULES)


def after(*steps: tuple[float, float]) -> tuple[Alert, ...]:
    """What is raised after readings (monotonic time, figure)."""
    watches: Watches = {}
    for at_s, pct in steps:
        watches = next_watches(watches, {"heat": pct}, "attic", at_s, 1000 + at_s, RULES)
    return alerts(watches)


@pytest.mark.parametrize(
    ("steps", "raised_unix_s"),
    [
        pytest.param([(0, 49.9), (20, 49.9)], None, id="under it"),
        pytest.param([(0, 50)], None, id="not yet"),
        pytest.param([(0, 50), (9, 60)], None, id="a moment short"),
        pytest.param([(0, 50), (10, 60)], 1010, id="long enough"),
        pytest.param([(0, 50), (5, 49), (10, 60)], None, id="once under it begins anew"),
        pytest.param([(0, 50), (10, 60), (30, 41)], 1010, id="between the bounds it stays"),
        pytest.param([(0, 50), (10, 60), (11, 0), (20, 0)], 1010, id="low, and not for long"),
        pytest.param([(0, 50), (10, 60), (11, 0), (21, 0)], None, id="low for long enough"),
        pytest.param(
            [(0, 50), (10, 60), (11, 0), (15, 41), (16, 0), (25, 0)], 1010, id="low, interrupted"
        ),
        pytest.param(
            [(0, 50), (10, 60), (11, 0), (21, 0), (22, 90), (31, 90)], None, id="again, not yet"
        ),
    ],
)
def test_an_alert_comes_and_goes_late(
    steps: list[tuple[float, float]], raised_unix_s: float | None
) -> None:
    found = after(*steps)
    if raised_unix_s is None:
        assert found == ()
    else:
        expected = Alert(
            rule="heat", subject="attic", value=steps[-1][1], threshold=50.0,
            raised_unix_s=raised_unix_s,
        )  # fmt: skip
        assert found == (expected,)


@pytest.mark.parametrize(
    ("readings", "raised"),
    [
        pytest.param([94.9], [False], id="just under"),
        pytest.param([95, 92, 91.9, 94.9], [True, True, False, False], id="no flapping"),
        pytest.param([95, 91, 95], [True, False, True], id="again"),
    ],
)
def test_a_rule_without_a_duration_speaks_at_once(
    readings: list[float], raised: list[bool]
) -> None:
    watches: Watches = {}
    seen = []
    for second, value in enumerate(readings):
        watches = judged(watches, second, second, disk=value)
        seen.append(bool(alerts(watches)))
    assert seen == raised


def test_a_figure_that_is_missing_passes_nothing_and_clears_at_once() -> None:
    hot = judged(judged({}, 0.0, 1000.0, heat=90.0), 10.0, 1010.0, heat=90.0)
    assert [alert.rule for alert in alerts(hot)] == ["heat"]
    gone = judged(hot, 11.0, 1011.0)
    assert alerts(gone) == ()
    assert [alert.cleared_unix_s for alert in cleared(gone)] == [1011.0]
    assert alerts(judged(gone, 12.0, 1012.0, heat=90.0)) == (), "the time before does not count"


def test_a_rule_that_is_off_is_never_passed() -> None:
    off = (Rule("heat", math.inf, math.inf, 0.0),)
    assert next_watches({}, {"heat": 1e9}, "attic", 0.0, 0.0, off) == {}


def test_what_was_cleared_is_told_for_a_while() -> None:
    watches = judged(judged({}, 0.0, 1000.0, disk=96.04), 5.0, 1005.0, disk=50.0)
    (over,) = cleared(watches)
    assert over == Alert(
        rule="disk", subject="attic", value=96.0, threshold=95.0,
        raised_unix_s=1000.0, cleared_unix_s=1005.0,
    )  # fmt: skip
    again = judged(watches, 6.0, 1006.0, disk=97.0)
    assert (cleared(again), [a.raised_unix_s for a in alerts(again)]) == ((over,), [1006.0])
    last = judged(watches, 604.0, 1004.9 + CLEARED_KEPT_S, disk=50.0)
    assert cleared(last) == (over,)
    assert judged(last, 605.0, 1005.0 + CLEARED_KEPT_S, disk=50.0) == {}, "nothing is remembered"
