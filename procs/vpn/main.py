"""The vpn process: says what the tunnel is, in place of a master's word on what it should be.

The one process with NET_ADMIN. What it makes of the settings and of the master's word is in
core.py. Reads vpn.want. Publishes: vpn.state.
"""

from collections.abc import Iterable

from procs.vpn.core import state
from shared.messages import VpnWant
from shared.service import Context, run

NAME = "vpn"
CAPABILITIES = frozenset({"NET_ADMIN"})
READS = ("vpn.want",)


class Vpn:
    """Keeps the master's last word: silence after it is no news."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._want: VpnWant | None = None
        self._said = ""

    def beat(self, now_s: float) -> None:
        self._want = self._context.bus.inbox.fresh(VpnWant, now_s) or self._want
        now = state(self._context.settings.vpn, self._want, now_s)
        self._context.bus.publish(now)
        if now.detail != self._said:
            self._said = now.detail
            self._context.log.info("%s: %s", now.phase, now.detail)

    def wake(self, ready: set[int], now_s: float) -> None:
        """Say at once what changes; the rest is the beat's."""
        want = self._context.bus.inbox.fresh(VpnWant, now_s)
        if want is not None and (self._want is None or want.tunnel != self._want.tunnel):
            self.beat(now_s)

    def descriptors(self) -> Iterable[int]:
        return ()

    def close(self) -> None:
        """Nothing to let go."""


def main() -> int:
    return run(NAME, CAPABILITIES, READS, Vpn)
