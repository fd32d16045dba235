"""The tunnel as the link uses it: which key the master is told, and, with VPN=required, that
nothing but registrations passes beside it. The tunnel itself is the vpn process's.

Reads vpn.state. Silence changes nothing by itself; that the tunnel stands is never taken from it.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Iterable
from typing import NoReturn

from procs.master_link.master_edge import MasterAwayError
from procs.master_link.news import News
from shared.messages import VpnPhase, VpnState
from shared.settings import split_address

GRACE_S = 30.0  # without a proven tunnel; the vpn process is back within two, if it was killed
UNBIND_S = 10.0  # after `vpn.state` says that the tunnel is down, which it has been a while then
REGISTER_AGAIN_S = 60.0  # while the tunnel does not come: the master may have lost the node
LOOK_S = 5.0

log = logging.getLogger("master_link")


class TunnelLostError(MasterAwayError):
    """VPN=required, and the tunnel is not proven any more."""


class Passage:
    """`mode`: the setting VPN. `told`: the key that the master was told last, also by an earlier
    life: until the vpn process has spoken it is still that."""

    def __init__(self, mode: str, news: News) -> None:
        self._news, self._is_off = news, mode == "off"
        self.required = mode == "required"
        self.told = ""

    @property
    def key(self) -> str:
        """What the master should know of this node; empty: no tunnel."""
        vpn = self._news.vpn()
        if self._is_off:
            return ""
        return vpn.public_key if vpn is not None else self.told

    @property
    def proven(self) -> VpnState | None:
        vpn = self._news.vpn()
        return vpn if vpn is not None and vpn.phase is VpnPhase.UP else None

    @property
    def why_not(self) -> str:
        vpn = self._news.vpn()
        return vpn.detail if vpn is not None else "no word from the vpn process"

    async def opened(self) -> bool:
        """Until the tunnel is proven; False: the master should be told something before."""
        deadline_s = time.monotonic() + REGISTER_AGAIN_S
        while self.proven is None:
            if self.key != self.told or time.monotonic() > deadline_s:
                return False
            await self._news.any.wait(REGISTER_AGAIN_S)
        return True

    async def lost(self) -> NoReturn:
        """Until the tunnel has not been proven for longer than the grace."""
        proven_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if self.proven is not None:
                proven_s = now_s
            elif now_s - proven_s > GRACE_S:
                raise TunnelLostError(f"VPN=required: the tunnel is lost: {self.why_not}")
            await asyncio.sleep(LOOK_S)

    async def address(self) -> str:
        """Where the tunnel is proven: this node's own in it."""
        while (vpn := self.proven) is None or not vpn.address:
            await self._news.any.wait()
        return vpn.address

    async def gone(self, address: str) -> None:
        """Until the tunnel has another address, or the vpn process says for a while that it is not
        proven: for a moment it is not, when its key is changed."""
        seen_s = time.monotonic()
        while True:
            vpn, now_s = self._news.vpn(), time.monotonic()
            if vpn is None or vpn.phase is VpnPhase.UP:
                seen_s = now_s
            if vpn is not None and (vpn.address != address or now_s - seen_s > UNBIND_S):
                return
            await self._news.any.wait()


def is_within(address: str, ranges: Iterable[str]) -> bool:
    """Does HOST:PORT lie in one of these networks? A name does not."""
    try:
        host = ipaddress.ip_address(split_address(address)[0].strip("[]"))
        return any(host in ipaddress.ip_network(one, strict=False) for one in ranges)
    except ValueError:
        return False
