"""The master's end of the VPN: its key, who may be there, and what nodes are told of it.

The database says which peers there should be; the interface is made to agree at each change and
whenever it has gone. What it asks of the machine is wireguard.py's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from procs.master import vpn_records, wireguard
from procs.master.database import Database
from procs.master.wireguard import End, WireGuardError
from shared.files import write_atomic
from shared.pb import hivemind_pb2 as pb

log = logging.getLogger("master")

ANSWER_S = 1.0  # for an answer to leave by the tunnel, before its key is replaced
LOOK_EVERY_S = 5.0  # is the interface still there? wireguard-go may have been killed


@dataclass(frozen=True)
class VpnSettings:
    """`endpoint`: HOST:PORT as nodes reach it."""

    endpoint: str
    network: IPv4Network
    port: int
    interface: str


class Vpn:
    """The server that the nodes' tunnels end at. `start` first."""

    def __init__(self, settings: VpnSettings, data: Path, database: Database) -> None:
        self._settings, self._database = settings, database
        self._key = _key(data / "identity" / "wireguard.key")
        self.public_key = wireguard.public_key_of(self._key)
        self.address = vpn_records.server_address(settings.network)
        self._changing = asyncio.Lock()
        self._asked = self._done = 0
        self._later = asyncio.Event()

    async def start(self) -> None:
        """With all peers; what a killed master left is taken over."""
        await asyncio.to_thread(wireguard.put_up, await self._end())

    async def close(self) -> None:
        async with self._changing:
            await asyncio.to_thread(wireguard.take_down, self._settings.interface)

    async def run(self) -> None:
        """Puts the interface up again when it has gone, and sets peers that could wait."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._later.wait(), LOOK_EVERY_S)
                await asyncio.sleep(ANSWER_S)
                self._later.clear()
                await self.sync()
            if wireguard.exists(self._settings.interface):
                continue
            try:
                async with self._changing:
                    await self.start()
                log.warning("the VPN's interface was gone: it is up again")
            except WireGuardError as err:
                log.error("the VPN's interface is gone: %s", err)

    async def sync(self) -> None:
        """The peers are those of the database when this returns; many callers share one round."""
        self._asked += 1
        mine = self._asked
        async with self._changing:
            if self._done >= mine:
                return
            asked = self._asked
            try:
                await asyncio.to_thread(wireguard.set_peers, await self._end())
            except WireGuardError as err:
                log.error("the VPN's peers can't be set: %s", err)  # run() puts it up again
            self._done = asked

    async def assign(self, node_id: str, public_key: str, caller: str) -> pb.VpnAssignment | None:
        """The node's place, as it is told; its peer is there when this returns, unless `caller`
        (gRPC's word for who calls) comes by the tunnel: a new key would cut off the answer.

        None: the range is full. KeyTaken: another node has the key.
        """
        network = self._settings.network
        address = await self._database.run(vpn_records.assign, node_id, public_key, network)
        if caller.startswith(f"ipv4:{address}:"):
            self._later.set()
        else:
            await self.sync()
        if address is None:
            log.error("%s gets no address in the VPN: %s is full", node_id, network)
            return None
        return pb.VpnAssignment(
            address=f"{address}/32",
            server_public_key=self.public_key,
            endpoint=self._settings.endpoint,
            allowed_ips=self._allowed_ips(),
        )

    async def shown(self) -> dict[str, dict[str, Any]]:
        """Node → its address, and when the tunnel last proved itself (0: never), for people."""
        seats = await self._database.run(vpn_records.seats)
        try:
            seen = await asyncio.to_thread(wireguard.handshakes, self._settings.interface)
        except WireGuardError as err:
            log.error("the VPN's peers can't be seen: %s", err)
            seen = {}
        return {
            node_id: {"address": address, "handshake_unix_s": seen.get(key, 0)}
            for node_id, (address, key) in seats.items()
        }

    def document(self, grpc: str) -> dict[str, Any]:
        """Of the discovery document. `grpc`: where gRPC is; its port is the same in the tunnel."""
        return {
            "public_key": self.public_key,
            "endpoint": self._settings.endpoint,
            "allowed_ips": self._allowed_ips(),
            "dns": [],
            "grpc": f"{self.address}:{grpc.rpartition(':')[2]}",
        }

    def _allowed_ips(self) -> Sequence[str]:
        return [str(self._settings.network)]

    async def _end(self) -> End:
        network = self._settings.network
        return End(
            self._settings.interface,
            self._key,
            self._settings.port,
            f"{self.address}/{network.prefixlen}",
            await self._database.run(vpn_records.peers, network),
        )


def _key(path: Path) -> str:
    """Made at the first start; it stays the same."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, wireguard.make_key().encode() + b"\n", 0o600)
        key = path.read_text().strip()
    except (OSError, ValueError) as err:
        raise WireGuardError(f"cannot use {path}: {err}") from err
    if not wireguard.is_key(key):
        raise WireGuardError(f"{path} holds no WireGuard key")
    return key
