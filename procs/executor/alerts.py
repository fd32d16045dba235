"""Which thresholds a task has passed: raised and cleared late, so that they do not flap. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.messages import Alert, TaskUse


@dataclass(frozen=True)
class Rule:
    """Raised after `for_s` at or over `raise_pct`; cleared after `for_s` under `clear_pct`."""

    name: str
    raise_pct: float
    clear_pct: float
    for_s: float


RULES = (
    Rule("memory", 90.0, 80.0, 5.0),  # of its limit: what comes next is the OOM killer
    Rule("cpu_throttled", 50.0, 40.0, 10.0),  # of its periods: it would be faster with more
    Rule("disk", 90.0, 80.0, 0.0),  # of its limit, where it is stopped
)


@dataclass(frozen=True)
class Watch:
    """What is remembered of a rule: since when the figure speaks against what is so now."""

    alert: Alert | None = None
    since_s: float | None = None


Watches = Mapping[str, Watch]  # by the rule's name


def readings(use: TaskUse) -> dict[str, float]:
    """The figure that each rule looks at."""
    return {
        "memory": _pct(use.memory_bytes, use.memory_limit_bytes),
        "cpu_throttled": use.cpu_throttled_pct,
        "disk": _pct(use.disk_bytes, use.disk_limit_bytes),
    }


def _pct(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def next_watches(
    watches: Watches, use: TaskUse, subject: str, now_s: float, now_unix_s: float
) -> Watches:
    """What is remembered after a reading of the task's use."""
    values = readings(use)
    return {
        rule.name: _next(
            rule, watches.get(rule.name, Watch()), values[rule.name], subject, now_s, now_unix_s
        )
        for rule in RULES
    }


def _next(
    rule: Rule, watch: Watch, value: float, subject: str, now_s: float, now_unix_s: float
) -> Watch:
    alert = watch.alert
    is_against = value >= rule.raise_pct if alert is None else value < rule.clear_pct
    since_s = (now_s if watch.since_s is None else watch.since_s) if is_against else None
    if since_s is not None and now_s - since_s >= rule.for_s:
        raised = _alert(rule, subject, value, now_unix_s) if alert is None else None
        return Watch(raised)
    if alert is not None:
        alert = _alert(rule, subject, value, alert.raised_unix_s)
    return Watch(alert, since_s)


def _alert(rule: Rule, subject: str, value: float, raised_unix_s: float) -> Alert:
    return Alert(
        rule=rule.name, subject=subject, value=value, threshold=rule.raise_pct,
        raised_unix_s=raised_unix_s,
    )  # fmt: skip


def alerts(watches: Watches) -> tuple[Alert, ...]:
    return tuple(watch.alert for watch in watches.values() if watch.alert is not None)
