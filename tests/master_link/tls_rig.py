"""master_link in this process against the real master over TLS, with a fake executor."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from procs.client.api import Master as Api
from procs.master.main import Addresses, Settings, running
from shared.messages import LinkPhase
from tests.fakes.executor import FakeExecutor
from tests.master_link.rig import Rig, short_home


@dataclass
class TlsMaster:
    """A master that runs, and what its administrator does."""

    data: Path
    addresses: Addresses

    @property
    def url(self) -> str:
        return self.addresses.http

    def _api(self) -> Api:
        return Api(self.url, self.addresses.admin_token_file)

    async def get(self, path: str) -> dict[str, Any]:
        with contextlib.closing(await asyncio.to_thread(self._api)) as api:
            return await asyncio.to_thread(api.get, path)

    async def order(self, path: str, **body: Any) -> dict[str, Any]:
        with contextlib.closing(await asyncio.to_thread(self._api)) as api:
            return await asyncio.to_thread(api.order, path, body)

    async def token(self, **body: Any) -> str:
        return str((await self.order("/api/v1/tokens", **body))["token"])

    async def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("/api/v1/nodes"))["nodes"]
        return found


@contextlib.asynccontextmanager
async def tls_master(data: Path, **settings: Any) -> AsyncIterator[TlsMaster]:
    chosen = Settings("127.0.0.1:0", "127.0.0.1:0", data, tls=True, **settings)
    async with running(chosen) as addresses:
        yield TlsMaster(data, addresses)


@dataclass
class TlsRig(Rig):
    """A node's link; `lib` is where its identity lies."""

    lib: Path = field(default=Path())

    async def in_phase(self, phase: LinkPhase, words: str = "") -> None:
        await self.until(
            lambda: self.link_state().phase is phase and words in self.link_state().detail
        )

    async def joined(self) -> str:
        """Its node_id, once a heartbeat was acknowledged."""
        await self.in_phase(LinkPhase.CONNECTED)
        return self.link_state().node_id


@contextlib.asynccontextmanager
async def node(
    url: str, token: str = "", runs: bool = False, **settings: str
) -> AsyncIterator[TlsRig]:
    """A node with a home of its own, not started yet."""
    with short_home() as home:
        executor = FakeExecutor(home, runs)
        if token:
            settings["MASTER_JOIN_TOKEN"] = token
        master: Any = SimpleNamespace(url=url)
        made = TlsRig(home, master, executor, settings, lib=home / "lib")
        try:
            yield made
        finally:
            if made._running is not None:
                await made.stop_link()
            await executor.close()
