"""Which alerts a report tells: each that stands, and once each that ended since the last. Pure.

Who raises them says for a while which are over, and when; one of whoever ends with it, as a
task's, is over when it is gone. A source that is silent ends nothing, unless it is for long.
"""

from collections.abc import Iterable

import msgspec

from shared.messages import Alert

GONE_AFTER_S = 60.0  # of silence: a set of GPUs that the owner took out, not a restart
MOST = 500  # in one report: one that flaps for a day is not told each time

Name = tuple[str, str, float]


def _name(alert: Alert) -> Name:
    return alert.rule, alert.subject, alert.raised_unix_s


class AlertBook:
    """For one report after the other."""

    def __init__(self, from_unix_s: float) -> None:
        self._from_unix_s = from_unix_s
        self._raised: dict[str, dict[Name, Alert]] = {}  # by source
        self._over: dict[str, set[Name]] = {}  # what each says is over, as it said last
        self._heard_unix_s: dict[str, float] = {}
        self._ended: dict[Name, Alert] = {}  # since the last report

    def hear(
        self, source: str, raised: Iterable[Alert], cleared: Iterable[Alert], now_unix_s: float
    ) -> None:
        """All that a source says now."""
        before, over = self._raised.get(source, {}), {_name(alert): alert for alert in cleared}
        known = self._over.get(source, set())
        self._raised[source] = {_name(alert): alert for alert in raised}
        self._over[source], self._heard_unix_s[source] = set(over), now_unix_s
        for name in before.keys() - self._raised[source].keys():
            self._end(over.get(name, before[name]), now_unix_s)
        for name in over.keys() - known - before.keys():  # of a moment, or from before our start
            if (over[name].cleared_unix_s or 0.0) >= self._from_unix_s:
                self._end(over[name], now_unix_s)

    def _end(self, alert: Alert, now_unix_s: float) -> None:
        if alert.cleared_unix_s is None:
            alert = msgspec.structs.replace(alert, cleared_unix_s=now_unix_s)
        self._ended[_name(alert)] = alert

    def close(self, to_unix_s: float) -> list[Alert]:
        """What the report that ends now tells; the next begins."""
        for source, heard_unix_s in self._heard_unix_s.items():
            if to_unix_s - heard_unix_s >= GONE_AFTER_S:
                for alert in self._raised.pop(source, {}).values():
                    self._end(alert, to_unix_s)
        standing = [alert for known in self._raised.values() for alert in known.values()]
        told = [*standing, *list(self._ended.values())[-MOST:]]
        self._ended, self._from_unix_s = {}, to_unix_s
        return told
