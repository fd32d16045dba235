"""A task's thresholds: what each looks at."""

import pytest

from procs.executor.alerts import RULES, readings
from shared.messages import TaskUse
from shared.thresholds import Watches, alerts, next_watches


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
    watches: Watches = {}
    for now_s in (0.0, 60.0):
        watches = next_watches(watches, readings(use), "t", now_s, now_s, RULES)
    assert {alert.rule for alert in alerts(watches)} == rules


def test_every_rule_has_its_figure_and_a_lower_bound() -> None:
    assert readings(TaskUse()).keys() == {rule.name for rule in RULES}
    assert all(rule.clear_at < rule.raise_at for rule in RULES)
