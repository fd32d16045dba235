"""The vpn process: the tunnel, and the firewall of task networks.

The one process with NET_ADMIN. What it makes of the settings and of the master's word is in
core.py, tunnel_watch.py and vpn_service.py; the firewall is guard.py's. Reads vpn.want,
link.state, owner.want. Publishes: vpn.state.
"""

from collections.abc import Iterable

import msgspec

from procs.vpn.guard import Guard
from procs.vpn.tunnel_watch import TunnelWatch
from shared.messages import LinkState, OwnerWant, VpnWant
from shared.service import Context, run

NAME = "vpn"
CAPABILITIES = frozenset({"NET_ADMIN"})
READS = ("vpn.want", "link.state", "owner.want")


class Vpn:
    """The tunnel and the firewall, side by side."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._guard = Guard(context.settings)
        self._tunnel = TunnelWatch(context.settings)
        self._said = ""

    def beat(self, now_s: float) -> None:
        self._hear(now_s)
        self._guard.beat(now_s)
        self._tunnel.beat(now_s)
        self._say(now_s)

    def _hear(self, now_s: float) -> None:
        inbox = self._context.bus.inbox
        link, owner = inbox.fresh(LinkState, now_s), inbox.fresh(OwnerWant, now_s)
        self._tunnel.hear(
            inbox.fresh(VpnWant, now_s),
            link.node_id if link is not None else "",
            owner.tunnel_key_after_unix_s if owner is not None else 0.0,
        )

    def _say(self, now_s: float) -> None:
        guard, tunnel = self._guard, self._tunnel.state(now_s)
        trouble = guard.why_open if self._context.settings.egress else ""
        now = msgspec.structs.replace(
            tunnel,
            synced=guard.has_looked and self._tunnel.has_turned,
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
        self._hear(now_s)
        news = self._guard.wake(ready, now_s)
        if self._tunnel.wake(ready, now_s) or news:
            self._say(now_s)

    def descriptors(self) -> Iterable[int]:
        return [*self._guard.descriptors(), *self._tunnel.descriptors()]

    def close(self) -> None:
        self._guard.close()
        self._tunnel.close()


def main() -> int:
    return run(NAME, CAPABILITIES, READS, Vpn)
