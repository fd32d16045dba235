"""A task's thresholds: when an alert is raised, stays, and goes."""

import pytest

from procs.executor.alerts import RULES, Watches, alerts, next_watches, readings
from shared.messages import Alert, TaskUse

CPU = next(rule for rule in RULES if rule.name == "cpu_throttled")


def after(*steps: tuple[float, float]) -> tuple[Alert, ...]:
    """What is raised after readings (monotonic time, share of CPU periods throttled)."""
    watches: Watches = {}
    for at_s, pct in steps:
        use = TaskUse(cpu_throttled_pct=pct)
        watches = next_watches(watches, use, "task t.1", at_s, 1000 + at_s)
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
            rule="cpu_throttled", subject="task t.1", value=steps[-1][1], threshold=50.0,
            raised_unix_s=raised_unix_s,
        )  # fmt: skip
        assert found == (expected,)


@pytest.mark.parametrize(
    ("use", "rules"),
    [
        pytest.param(TaskUse(), set(), id="nothing known"),
        pytest.param(TaskUse(memory_bytes=90, memory_limit_bytes=100), {"memory"}, id="memory"),
        pytest.param(TaskUse(memory_bytes=89, memory_limit_bytes=100), set(), id="less memory"),
        pytest.param(TaskUse(disk_bytes=90, disk_limit_bytes=100), {"disk"}, id="disk"),
        pytest.param(TaskUse(cpu_throttled_pct=50.0), {"cpu_throttled"}, id="CPU"),
        pytest.param(
            TaskUse(memory_bytes=1, memory_limit_bytes=1, disk_bytes=1, disk_limit_bytes=1),
            {"memory", "disk"},
            id="both",
        ),
    ],
)
def test_each_rule_looks_at_its_own_figure(use: TaskUse, rules: set[str]) -> None:
    watches = next_watches({}, use, "t", 0.0, 0.0)
    assert {alert.rule for alert in alerts(next_watches(watches, use, "t", 60.0, 60.0))} == rules


def test_every_rule_has_its_figure_and_a_lower_bound() -> None:
    assert readings(TaskUse()).keys() == {rule.name for rule in RULES}
    assert all(rule.clear_pct < rule.raise_pct for rule in RULES)
