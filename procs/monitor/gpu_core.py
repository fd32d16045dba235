"""What a monitor of GPUs decides: whose fault an error of NVML's is, which cards can be used, which
alerts stand. Pure: no clock, no NVML, no sockets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from shared.messages import Alert, GpuSample
from shared.settings import Threshold
from shared.thresholds import Rule, Watches, alerts, cleared, next_watches

STALE_S = 3.0  # a call that takes longer hangs: then nobody knows how its card is
RETURN_AFTER_S = 3.0  # a card that was lost answers for so long before it is given to tasks again
TEMPERATURE, MEMORY, LOST = "gpu_temperature", "gpu_memory", "gpu_lost"


# ------------------------------------------------------------------ errors of NVML's


class Blame(Enum):
    """What an error says something of."""

    FIGURE = auto()  # this card does not tell it: None
    CARD = auto()  # it can't be used now
    DRIVER = auto()  # no card can


UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH = 1, 9, 12, 18
DRIVER_CODES = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH})
CARD_CODES = frozenset({8, 11, 15, 16, 28})  # each has its reason below
NEVER_CODES = frozenset({3, 13, 25, 26})  # neither this card nor this driver ever tells that figure
REASONS = {
    UNINITIALIZED: "the driver's session has ended",
    DRIVER_NOT_LOADED: "the driver is not loaded, or its device files are missing: try nvidia-smi",
    LIBRARY_NOT_FOUND: "there is no NVIDIA driver: libnvidia-ml.so.1 is not found",
    MISMATCH: "the driver was updated: its library and the kernel's module differ until a restart"
    " of the machine",
    8: "its power cables are not connected",
    11: "its interrupts do not arrive",
    15: "it fell off the bus",
    16: "it must be reset: nvidia-smi --gpu-reset, or a restart of the machine",
    28: "the driver does not find it",
}


def blame(code: int, is_needed: bool) -> Blame:
    """`is_needed`: every card that works answers this call, or never has."""
    if code in DRIVER_CODES:
        return Blame.DRIVER
    if code in CARD_CODES or (is_needed and code not in NEVER_CODES):
        return Blame.CARD
    return Blame.FIGURE


def reason(code: int, said: str) -> str:
    return REASONS.get(code, f"NVML says: {said} (error {code})")


# ------------------------------------------------------------------ what NVML's numbers mean

IDLE = 1  # held back by nothing but having nothing to do
THROTTLES = {
    0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake",
    0x100: "display clocks",
}  # fmt: skip
OF_A_PROGRAM = frozenset({13, 31, 43, 45, 68, 109})  # XIDs that a faulty program causes: these take
# no card out, as with NVIDIA's own device plugin


def throttle_reasons(bits: int) -> tuple[str, ...]:
    known = tuple(name for bit, name in THROTTLES.items() if bits & bit)
    unknown = bits & ~(IDLE | sum(THROTTLES))
    return (*known, f"0x{unknown:x}") if unknown else known


def unusable(xid: int | None) -> str:
    """Why a card with such an error is given to nobody; empty: it may be."""
    if xid is None or xid in OF_A_PROGRAM:
        return ""
    return f"XID {xid}: stop its monitor, reset it, start the monitor"


# ------------------------------------------------------------------ how a card is


def lost(uuid: str, why: str, known: GpuSample | None = None) -> GpuSample:
    """A card that can't be used; of what was known of it only what stays true."""
    if known is None:
        return GpuSample(index=-1, uuid=uuid, name="", reachable=False, reason=why)
    return GpuSample(
        index=known.index, uuid=uuid, name=known.name, reachable=False, reason=why,
        memory_total_bytes=known.memory_total_bytes, driver_version=known.driver_version,
        xid=known.xid, is_split=known.is_split, mig_of=known.mig_of,
    )  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """The newest reading of a card, and when it was taken."""

    sample: GpuSample
    at_s: float


@dataclass(frozen=True)
class Card:
    """What is remembered of a card between two beats."""

    told: GpuSample  # as it was published
    well_since_s: float  # answers since; meaningless while it does not
    watches: Watches


def next_card(card: Card | None, uuid: str, seen: Seen | None, why: str, now_s: float) -> Card:
    """`why`: it is known not to be readable."""
    known = _known(card, seen)
    watches = card.watches if card else {}
    if why or seen is None or now_s - seen.at_s >= STALE_S:
        told = lost(uuid, why or _silence(seen, now_s), known)
    elif not seen.sample.reachable:
        told = lost(uuid, seen.sample.reason, known)
    elif refused := unusable(seen.sample.xid):
        told = msgspec.structs.replace(seen.sample, reachable=False, reason=refused)
    else:
        return _well(card, seen.sample, now_s, watches)
    return Card(told, now_s, watches)


def _known(card: Card | None, seen: Seen | None) -> GpuSample | None:
    """The last that tells what it is: a reading that failed does not."""
    told = card.told if card else None
    if seen is None or (told is not None and told.name and not seen.sample.reachable):
        return told
    return seen.sample


def _well(card: Card | None, sample: GpuSample, now_s: float, watches: Watches) -> Card:
    """One that is seen for the first time, or was well, is; one that was lost has to last."""
    since_s = card.well_since_s if card else now_s
    if card and not card.told.reachable and now_s - since_s < RETURN_AFTER_S:
        return Card(lost(sample.uuid, "it answers again, for a moment", sample), since_s, watches)
    return Card(sample, since_s, watches)


def _silence(seen: Seen | None, now_s: float) -> str:
    if seen is None:
        return "the driver has not answered yet"
    return f"the driver has not answered for {now_s - seen.at_s:.0f} s"


# ------------------------------------------------------------------ alerts


def rules(temperature: Threshold, memory: Threshold) -> tuple[Rule, ...]:
    """°C, percent; and a card that is lost, at once: tasks may be on it."""
    return (
        Rule(TEMPERATURE, *temperature), Rule(MEMORY, *memory), Rule(LOST, 1.0, 1.0, 0.0),
    )  # fmt: skip


def readings(sample: GpuSample) -> dict[str, float]:
    """What the rules look at; what the card does not tell is not in it."""
    found = {LOST: 0.0 if sample.reachable else 1.0}
    if sample.temperature_c is not None:
        found[TEMPERATURE] = sample.temperature_c
    if sample.memory_used_bytes is not None and sample.memory_total_bytes:
        found[MEMORY] = 100.0 * sample.memory_used_bytes / sample.memory_total_bytes
    return found


def watched(card: Card, thresholds: Iterable[Rule], now_s: float, now_unix_s: float) -> Card:
    """With its alerts judged anew."""
    watches = next_watches(
        card.watches, readings(card.told), card.told.uuid, now_s, now_unix_s, tuple(thresholds)
    )
    return Card(card.told, card.well_since_s, watches)


def all_alerts(cards: Mapping[str, Card]) -> tuple[Alert, ...]:
    return tuple(alert for card in cards.values() for alert in alerts(card.watches))


def all_cleared(cards: Mapping[str, Card]) -> tuple[Alert, ...]:
    return tuple(alert for card in cards.values() for alert in cleared(card.watches))


def alert_of_set(
    gpu_set: str, why: str, cards: Mapping[str, Card], since_unix_s: float
) -> tuple[Alert, ...]:
    """Where no card of the set has ever been seen, none has an alert of its own."""
    if not why or cards:
        return ()
    return (
        Alert(rule=LOST, subject=gpu_set, value=1.0, threshold=1.0, raised_unix_s=since_unix_s),
    )
