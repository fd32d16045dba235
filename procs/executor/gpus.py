"""GPUs: which cards tasks may have, which of them one gets, and what Docker is asked for. Pure but
for what `Cards` remembers.

Whole cards, by UUID, to one task at a time, and only those that their monitor calls healthy now.
Silence is no news: while a monitor is stale, none of its cards is given, and who has one keeps it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.messages import GpuLoad, GpuSample

BOUND_WITHIN_S = 3.0  # by then the monitors of a worker that has just started have a socket
HEARD_WITHIN_S = 10.0  # one that has not spoken by then is not run any more
UNKNOWN = "unknown"  # in place of UUIDs: what an attempt has, nobody can read
VISIBLE = "NVIDIA_VISIBLE_DEVICES"
NO_CARD = "void"  # NVIDIA's word for: a container like any other
LIBRARIES = "compute,utility,video"  # no `display`: it would bring the owner's screen with it
TURNED_OFF = {  # what an image may ask NVIDIA's runtime for beside cards: devices of the host
    "NVIDIA_MOFED": "disabled",
    "NVIDIA_GDS": "disabled",
    "NVIDIA_GDRCOPY": "disabled",
    "NVIDIA_NVSWITCH": "disabled",
    "NVIDIA_IMEX_CHANNELS": "",
}
NO_DRIVER = "could not select device driver"  # Docker's words where NVIDIA's toolkit is missing


@dataclass(frozen=True)
class Card:
    """A healthy GPU."""

    uuid: str
    memory_bytes: int = 0


class Cards:
    """What the monitors say. Belongs to the loop's thread."""

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._last: dict[str, GpuLoad] = {}  # by monitor
        self._silent: set[str] = set()
        self._samples: dict[str, GpuSample] = {}
        self.has_driver = True  # until Docker says that it has none
        self.known = False  # do we know what cards there are?

    def take(
        self, monitors: Iterable[str], fresh: Mapping[str, GpuLoad], now_s: float
    ) -> None:
        """`monitors`: those that are there, whether they speak or not."""
        self._last.update(fresh)
        self._silent = self._last.keys() - fresh.keys()
        heard = self._last.keys() >= set(monitors)
        within_s = BOUND_WITHIN_S if heard else HEARD_WITHIN_S
        self.known = self.known or now_s - self._began_s >= within_s
        self._samples = _merged(self._last.values())

    def healthy(self) -> tuple[Card, ...]:
        """All that this node has, by the last word of each monitor."""
        return _healthy(self._samples.values()) if self.has_driver else ()

    def lost_count(self) -> int:
        """Of those that a task could have if they were well."""
        lost = [s for s in self._samples.values() if s.is_whole and not s.reachable]
        return len(lost) if self.has_driver else 0

    def grantable(self) -> tuple[Card, ...]:
        """Those whose health is no older than a beat or two."""
        silent = {g.uuid for name in self._silent for g in self._last[name].gpus}
        return tuple(card for card in self.healthy() if card.uuid not in silent)

    def lost(self, uuids: Iterable[str]) -> str:
        """What became of a task's cards, for its detail; empty: they are well, or there is no
        news of them."""
        samples = (self._samples.get(uuid) for uuid in uuids)
        found = [f"GPU {s.uuid} is lost: {s.reason}" for s in samples if s and not s.reachable]
        return "; ".join(found)

    def use_pct(self, uuids: Sequence[str]) -> float | None:
        """The mean use of these cards; None where no card says."""
        samples = (self._samples.get(uuid) for uuid in uuids)
        values = [s.util_pct for s in samples if s and s.reachable and s.util_pct is not None]
        return sum(values) / len(values) if values else None


def _merged(loads: Iterable[GpuLoad]) -> dict[str, GpuSample]:
    """By UUID; of a card in two sets the bad news counts."""
    found: dict[str, GpuSample] = {}
    for sample in (gpu for load in loads for gpu in load.gpus):
        known = found.get(sample.uuid)
        if sample.uuid and (known is None or known.reachable):
            found[sample.uuid] = sample
    return found


def _healthy(samples: Iterable[GpuSample]) -> tuple[Card, ...]:
    """MIG's instances and the cards that are split into them are the owner's to use."""
    return tuple(
        Card(s.uuid, s.memory_total_bytes) for s in samples if s.reachable and s.is_whole
    )


# ------------------------------------------------------------------ which of them


def free_cards(cards: Iterable[Card], taken: Iterable[str]) -> tuple[Card, ...]:
    """None at all while it is not known which of them a task has."""
    held = set(taken)
    return () if UNKNOWN in held else tuple(card for card in cards if card.uuid not in held)


def named(uuids: Iterable[str]) -> tuple[str, ...]:
    """As others are told."""
    return tuple(uuid for uuid in uuids if uuid != UNKNOWN)


def best_fit(count: int, memory_bytes: int, free: Iterable[Card]) -> tuple[Card, ...]:
    """`count` cards with that much memory each, the smallest that have it; fewer: there are no
    more. Large cards are left to those who need them."""
    fitting = (card for card in free if card.memory_bytes >= memory_bytes)
    return tuple(sorted(fitting, key=lambda card: (card.memory_bytes, card.uuid))[:count])


# ------------------------------------------------------------------ what Docker is asked for


def requests(uuids: Sequence[str]) -> list[dict[str, Any]]:
    """As `docker run --gpus '"device=UUID,…"'` has it; tests hold it to a recording."""
    if not uuids:
        return []
    return [
        {"Driver": "", "Count": 0, "DeviceIDs": list(uuids), "Capabilities": [["gpu"]],
         "Options": {}},
    ]  # fmt: skip


def environment(uuids: Sequence[str]) -> list[str]:
    """Of the container, not of the task: over what an image sets, so that NVIDIA's runtime gives
    it nothing but its own cards, also where that runtime is the engine's default."""
    own = {VISIBLE: ",".join(uuids) or NO_CARD, **TURNED_OFF}
    if uuids:
        own["NVIDIA_DRIVER_CAPABILITIES"] = LIBRARIES
    return [f"{name}={value}" for name, value in own.items()]
