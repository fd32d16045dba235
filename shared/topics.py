"""The table of topics: what travels on the bus, who alone publishes it, how often.

One of the two tables that are the map of the program; the other is `supervisor.conf`.
A new topic is one line here and one message class in `messages.py`.
"""

import functools
from dataclasses import dataclass

MISSED_BEATS = 3  # a topic is stale after so many: one late wake-up is no outage


@dataclass(frozen=True)
class Topic:
    """One kind of STATE. `owner` is the process that binds the socket it comes from."""

    name: str
    owner: str
    rate_hz: float

    @property
    def stale_after_s(self) -> float:
        return MISSED_BEATS / self.rate_hz


TOPICS = {
    t.name: t
    for t in (
        #     name             owner          Hz
        Topic("task.want", "master_link", 1.0),
        Topic("task.state", "executor", 1.0),
        Topic("link.state", "master_link", 1.0),
        Topic("vpn.want", "master_link", 1.0),
        Topic("vpn.state", "vpn", 1.0),
        Topic("host.load", "monitor", 1.0),
        Topic("gpu.load", "monitor", 1.0),
        Topic("owner.want", "web", 1.0),
        Topic("process.state", "watchdog", 1.0),
    )
}


@functools.cache
def owned_by(process: str) -> tuple[str, ...]:
    """The topics that `process` ("executor", "monitor@host") may publish."""
    role, _, instance = process.partition("@")
    if role == "monitor" and instance:
        return ("host.load",) if instance == "host" else ("gpu.load",)
    return tuple(t.name for t in TOPICS.values() if t.owner == process != "monitor")
