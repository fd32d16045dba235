"""Thresholds: when one that is passed becomes an alert, and when that is over. Pure.

An alert is raised when a figure has been at or over its threshold for a while, and cleared when it
has been well below for as long: between the two nothing changes, so that it does not flap.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from shared.messages import Alert

CLEARED_KEPT_S = 600.0  # for whoever shows or reports it


@dataclass(frozen=True)
class Rule:
    """Raised after `for_s` at or over `raise_at`; cleared after `for_s` under `clear_at`."""

    name: str
    raise_at: float
    clear_at: float
    for_s: float


# ------------------------------------------------------------------ what passes them


@dataclass(frozen=True)
class Watch:
    """What is remembered of a rule: its alert, the last one that was cleared, and since when the
    figure speaks against what is so now (monotonic)."""

    alert: Alert | None = None
    since_s: float | None = None
    cleared: Alert | None = None


Watches = Mapping[str, Watch]  # by the rule's name; one of which nothing is to be said is not in it


def next_watches(
    watches: Watches,
    values: Mapping[str, float],
    subject: str,
    now_s: float,
    now_unix_s: float,
    rules: Iterable[Rule],
) -> Watches:
    """What is remembered after these readings of `subject`. A figure that is missing passes
    nothing, and clears at once."""
    found = {
        rule.name: _next(
            rule, watches.get(rule.name, Watch()), values.get(rule.name), subject, now_s, now_unix_s
        )
        for rule in rules
    }
    return {name: watch for name, watch in found.items() if watch != Watch()}


def _next(
    rule: Rule, watch: Watch, value: float | None, subject: str, now_s: float, now_unix_s: float
) -> Watch:
    watch = _without_old(watch, now_unix_s)
    if value is None:
        return _cleared(watch, now_unix_s)
    alert = watch.alert
    is_against = value >= rule.raise_at if alert is None else value < rule.clear_at
    since_s = (now_s if watch.since_s is None else watch.since_s) if is_against else None
    if since_s is not None and now_s - since_s >= rule.for_s:
        if alert is not None:
            return _cleared(watch, now_unix_s)
        return replace(watch, alert=_alert(rule, subject, value, now_unix_s), since_s=None)
    if alert is not None:
        alert = _alert(rule, subject, value, alert.raised_unix_s)
    return replace(watch, alert=alert, since_s=since_s)


def _alert(rule: Rule, subject: str, value: float, raised_unix_s: float) -> Alert:
    return Alert(
        rule=rule.name, subject=subject, value=round(value, 1), threshold=rule.raise_at,
        raised_unix_s=raised_unix_s,
    )  # fmt: skip


def _cleared(watch: Watch, now_unix_s: float) -> Watch:
    if watch.alert is None:
        return Watch(cleared=watch.cleared)
    return Watch(cleared=msgspec.structs.replace(watch.alert, cleared_unix_s=now_unix_s))


def _without_old(watch: Watch, now_unix_s: float) -> Watch:
    at = watch.cleared.cleared_unix_s if watch.cleared else None
    if at is not None and abs(now_unix_s - at) >= CLEARED_KEPT_S:
        return replace(watch, cleared=None)
    return watch


def alerts(watches: Watches) -> tuple[Alert, ...]:
    """Those that are raised."""
    return tuple(watch.alert for watch in watches.values() if watch.alert is not None)


def cleared(watches: Watches) -> tuple[Alert, ...]:
    """Those that were cleared lately, the newest of each rule."""
    return tuple(watch.cleared for watch in watches.values() if watch.cleared is not None)
