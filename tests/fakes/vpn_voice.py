"""What the vpn process says, said by a test on the real bus, again and again as it does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from shared.bus import Bus
from shared.messages import VpnPhase, VpnState

EVERY_S = 0.05


class VpnVoice:
    """`state`: what is said from now on; None: nothing."""

    def __init__(self) -> None:
        self.state: VpnState | None = None

    def up(self, address: str = "10.8.0.2", public_key: str = "key") -> None:
        self.state = VpnState(at_s=0.0, phase=VpnPhase.UP, address=address, public_key=public_key)

    def down(
        self, detail: str = "no handshake yet", public_key: str = "key", address: str = "10.8.0.2"
    ) -> None:
        self.state = VpnState(
            at_s=0.0, phase=VpnPhase.DOWN, detail=detail, public_key=public_key, address=address
        )

    async def speak(self, bus: Bus) -> None:
        while True:
            if self.state is not None:
                bus.publish(msgspec.structs.replace(self.state, at_s=time.monotonic()))
            bus.drain()
            await asyncio.sleep(EVERY_S)


@contextlib.asynccontextmanager
async def vpn_voice(home: Path) -> AsyncIterator[VpnVoice]:
    voice, bus = VpnVoice(), Bus(home, "vpn")
    speaking = asyncio.create_task(voice.speak(bus))
    try:
        yield voice
    finally:
        speaking.cancel()
        bus.close()
