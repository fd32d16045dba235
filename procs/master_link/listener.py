"""Serves the master's calls where TASK_LISTEN says: on loopback from the start, in the tunnel for
as long as it is proven. The channel is open beside it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from procs.master_link import server_edge
from procs.master_link.membership import Membership
from procs.master_link.passage import Passage
from shared.settings import split_address

LISTEN_RETRY_S = 5.0
STRANGER_SHOWN_S = 600.0  # long enough to be seen, not for ever
IN_TUNNEL = "vpn"  # the host in TASK_LISTEN

log = logging.getLogger("master_link")

Stop = Callable[[], Awaitable[None]]


class Listener:
    """`told` is called with the endpoint that the master may dial, and empty when it goes."""

    def __init__(
        self,
        address: str,
        desk: server_edge.Assigns,
        membership: Membership,
        passage: Passage,
        told: Callable[[str], None],
    ) -> None:
        self._address, self._desk = address, desk
        self._membership, self._passage, self._told = membership, passage, told

    async def run(self) -> None:
        if not self._address:
            return
        host, port = split_address(self._address)
        if host != IN_TUNNEL:
            while True:
                await self._serve(self._address, asyncio.Event().wait)
        elif not self._membership.tls:
            log.warning("TASK_LISTEN=%s needs TLS: tasks come by the channel", self._address)
        else:
            while True:
                own = await self._passage.address()
                shown = f"[{own}]" if ":" in own else own
                await self._serve(f"{shown}:{port}", partial(self._passage.gone, own))

    async def _serve(self, address: str, end: Callable[[], Awaitable[object]]) -> None:
        """Until `end` returns."""
        if self._membership.tls:
            await self._membership.joined.wait()
        proof = self._membership.credentials if self._membership.tls else None
        try:
            port, stop = await server_edge.serve(self._desk, address, proof, self._on_stranger)
        except server_edge.ListenError as err:
            log.error("%s; next try in %.0f s", err, LISTEN_RETRY_S)
            await asyncio.sleep(LISTEN_RETRY_S)
            return
        self._told(f"{address.rpartition(':')[0]}:{port}")
        log.info("the master may dial %s", address)
        try:
            await end()
            log.info("the master may not dial %s any more", address)
        finally:
            self._told("")
            await stop()

    def _on_stranger(self, who: str) -> None:
        text = f"a call to TASK_LISTEN is refused: it came from {who}"
        self._membership.warn("caller", text)
        loop = asyncio.get_running_loop()
        loop.call_later(STRANGER_SHOWN_S, self._membership.withdraw, "caller", text)
