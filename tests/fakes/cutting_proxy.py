"""A TCP relay between a worker and its master that does harm: cuts, stalls, slows, refuses.

Runs in the caller's event loop. What it is told applies to every connection; what passed towards
the master is counted, so that a test can tell how much was sent again.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from enum import StrEnum

CHUNK_BYTES = 64 * 1024
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() then resets
LISTEN_BACKLOG = 128


class How(StrEnum):
    """How a connection ends."""

    RESET = "reset"
    END = "end"


class Wire:
    """One connection: both of its ends."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.moved_s = time.monotonic()
        self.sent_bytes = 0

    def cut(self, how: How = How.RESET) -> None:
        for writer in self.writers:
            if how is How.RESET:
                ours: socket.socket = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            writer.transport.abort()


class CuttingProxy:
    """Listens at `host`; relays to `target`, which may be set later."""

    def __init__(self, host: str = "127.0.0.1", target: tuple[str, int] = ("", 0)) -> None:
        self.host, self.target = host, target
        self.port = 0
        self.wires: set[Wire] = set()
        self.sent_bytes = self.received_bytes = 0  # towards the target, and from it
        self.connections = 0
        self.rate_bytes_s = 0.0  # towards the target; 0: as fast as it goes
        self.idle_s = 0.0  # cut what is silent for so long; 0: never
        self._trap: tuple[int, Callable[[Wire], None]] | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._free_s = 0.0
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Again at the same port, once it has one."""
        self._server = await asyncio.start_server(
            self._relay, self.host, self.port, limit=CHUNK_BYTES, backlog=LISTEN_BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cut all, and refuse what comes, until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def close(self) -> None:
        await self.refuse()
        for relay in self._relays:
            relay.cancel()
        if self._relays:
            await asyncio.wait(self._relays)

    # -------------------------------------------------------------- harm

    def cut(self, how: How = How.RESET) -> None:
        for wire in list(self.wires):
            wire.cut(how)

    def stall(self) -> None:
        """Half-open: connections stay and are taken, and nothing passes either way."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def at_byte(self, sent_bytes: int, action: Callable[[Wire], None]) -> None:
        """Call `action` once so many bytes in all have passed, with the wire of the last."""
        self._trap = (sent_bytes, action)

    # -------------------------------------------------------------- relaying

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        relay, wire = asyncio.current_task(), Wire()
        assert relay is not None
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)
        wire.writers.append(writer)
        self.wires.add(wire)
        try:
            await self._connect(wire, reader, writer)
        except OSError:
            wire.cut(How.END)  # as a proxy does whose other side has gone
        finally:
            wire.cut(How.END)
            self.wires.discard(wire)

    async def _connect(
        self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._flowing.wait()
        host, port = self.target
        there, back = await asyncio.open_connection(host, port, limit=CHUNK_BYTES)
        wire.writers.append(back)
        for one in wire.writers:
            one.transport.set_write_buffer_limits(CHUNK_BYTES)
            ours: socket.socket = one.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK_BYTES)
        pumps = {
            asyncio.create_task(self._send(wire, reader, back)),
            asyncio.create_task(self._receive(wire, there, writer)),
            asyncio.create_task(self._watch_idle(wire)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _send(
        self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            await self._pace(len(data))
            wire.moved_s = time.monotonic()
            trap = self._trap
            room = trap[0] - self.sent_bytes if trap is not None else len(data)
            for part in filter(None, (data[: max(room, 0)], data[max(room, 0) :])):
                writer.write(part)
                await writer.drain()
                self.sent_bytes += len(part)
                wire.sent_bytes += len(part)
                if trap is not None and self._trap is trap and self.sent_bytes >= trap[0]:
                    self._trap = None
                    trap[1](wire)

    async def _receive(
        self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            wire.moved_s = time.monotonic()
            self.received_bytes += len(data)
            writer.write(data)
            await writer.drain()

    async def _pace(self, count: int) -> None:
        if self.rate_bytes_s:
            now_s = time.monotonic()
            self._free_s = max(self._free_s, now_s) + count / self.rate_bytes_s
            await asyncio.sleep(self._free_s - now_s)

    async def _watch_idle(self, wire: Wire) -> None:
        while not self.idle_s or time.monotonic() - wire.moved_s < self.idle_s:
            await asyncio.sleep(min(self.idle_s or 1.0, 1.0) / 4)
