"""The vpn process: the tunnel, and the firewall of task networks.

The one process with NET_ADMIN. What it makes of the settings and of the master's word is in
core.py; the firewall is guard.py's. Reads vpn.want. Publishes: vpn.state.
"""

from collections.abc import Iterable

import msgspec

from procs.vpn.core import state
from procs.vpn.guard import Guard
from shared.messages import VpnWant
from shared.service import Context, run

NAME = "vpn"
CAPABILITIES = frozenset({"NET_ADMIN"})
READS = ("vpn.want",)


class Vpn:
    """Keeps the master's last word: silence after it is no news."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._guard = Guard(context.settings)
        self._want: VpnWant | None = None
        self._said = ""

    def beat(self, now_s: float) -> None:
        self._guard.beat(now_s)
        self._say(now_s)

    def _say(self, now_s: float) -> None:
        self._want = self._context.bus.inbox.fresh(VpnWant, now_s) or self._want
        settings, guard = self._context.settings, self._guard
        tunnel = state(settings.vpn, self._want, now_s)
        trouble = guard.why_open if settings.egress else ""
        now = msgspec.structs.replace(
            tunnel,
            synced=guard.has_looked,
            detail="; ".join(filter(None, (tunnel.detail, trouble))),
            covered_bridges=guard.covered(now_s),
            resolvers=guard.resolvers,
        )
        self._context.bus.publish(now)
        if now.detail != self._said:
            self._said = now.detail
            self._context.log.info("%s: %s", now.phase, now.detail)

    def wake(self, ready: set[int], now_s: float) -> None:
        """Say at once what changes; the rest is the beat's."""
        news = self._guard.wake(ready, now_s)
        want = self._context.bus.inbox.fresh(VpnWant, now_s)
        changed = want is not None and (self._want is None or want.tunnel != self._want.tunnel)
        if news or changed:
            self._say(now_s)

    def descriptors(self) -> Iterable[int]:
        return self._guard.descriptors()

    def close(self) -> None:
        self._guard.close()


def main() -> int:
    return run(NAME, CAPABILITIES, READS, Vpn)
