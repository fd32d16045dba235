"""What the monitor decides: which thresholds are passed, what of the network counts.

Pure: no clock, no psutil, no sockets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.messages import Alert, HostLoad


@dataclass(frozen=True)
class Rule:
    """An alert is raised when a reading has been at or over `raise_pct` for `for_s`, and cleared
    when it falls under `clear_pct`: between the two nothing changes, so that it does not flap."""

    name: str
    raise_pct: float
    clear_pct: float
    for_s: float


RULES = (
    Rule("cpu", 95.0, 85.0, 60.0),  # a task may use all for a moment; a minute of it is news
    Rule("memory", 90.0, 85.0, 10.0),  # what is left is what the kernel needs to stay quick
    Rule("swap", 80.0, 70.0, 60.0),  # full swap comes shortly before the OOM killer
    Rule("disk", 95.0, 92.0, 0.0),  # of the home's file system: it fills within seconds
)


@dataclass(frozen=True)
class Watch:
    """What is remembered of a rule: since when it is passed (monotonic), and its alert."""

    over_since_s: float
    alert: Alert | None = None


Watches = Mapping[str, Watch]  # by the rule's name; a rule that is not passed is not in it


def readings(load: HostLoad) -> dict[str, float]:
    """The figure that each rule looks at."""
    used = load.disk_total_bytes - load.disk_free_bytes
    disk_pct = 100.0 * used / load.disk_total_bytes if load.disk_total_bytes else 0.0
    return {
        "cpu": load.cpu_pct, "memory": load.memory_pct, "swap": load.swap_pct, "disk": disk_pct,
    }  # fmt: skip


def next_watches(
    watches: Watches,
    values: Mapping[str, float],
    subject: str,
    now_s: float,
    now_unix_s: float,
    rules: Iterable[Rule] = RULES,
) -> Watches:
    """What is remembered after these readings of `subject`; one that is missing passes nothing."""
    known = [rule for rule in rules if rule.name in values]
    found = {
        rule.name: _next(rule, watches.get(rule.name), values[rule.name], now_s) for rule in known
    }
    raised = {name: watch for name, watch in found.items() if watch is not None}
    for rule in known:
        watch = raised.get(rule.name)
        if watch is not None and _is_due(rule, watch, now_s):
            since = watch.alert.raised_unix_s if watch.alert else now_unix_s
            alert = Alert(
                rule=rule.name, subject=subject, value=values[rule.name],
                threshold=rule.raise_pct, raised_unix_s=since,
            )  # fmt: skip
            raised[rule.name] = Watch(watch.over_since_s, alert)
    return raised


def _next(rule: Rule, watch: Watch | None, value: float, now_s: float) -> Watch | None:
    raised = watch is not None and watch.alert is not None
    if value < (rule.clear_pct if raised else rule.raise_pct):
        return None
    return watch or Watch(now_s)


def _is_due(rule: Rule, watch: Watch, now_s: float) -> bool:
    return watch.alert is not None or now_s - watch.over_since_s >= rule.for_s


def alerts(watches: Watches) -> tuple[Alert, ...]:
    return tuple(watch.alert for watch in watches.values() if watch.alert is not None)


# ------------------------------------------------------------------ the network

INSIDE = ("lo", "veth", "br-", "docker", "virbr", "hm-", "wg", "tun")  # carried by another card,
# or never leaving the machine: counting them would count a byte twice


class NetworkTotal:
    """Bytes received and sent by the machine's own cards; only grows, also when a card goes."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0
        self._last: dict[str, tuple[int, int]] = {}

    def add(self, cards: Mapping[str, tuple[int, int]]) -> None:
        """Take the kernel's counters; one that fell began again from zero."""
        for name, (received, sent) in cards.items():
            if name.startswith(INSIDE):
                continue
            before_received, before_sent = self._last.get(name, (0, 0))
            if received < before_received or sent < before_sent:
                before_received = before_sent = 0
            self.received_bytes += received - before_received
            self.sent_bytes += sent - before_sent
            self._last[name] = (received, sent)
