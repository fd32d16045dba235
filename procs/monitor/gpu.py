"""The monitor of one set of GPUs: reads it once a second, publishes it.

`python -m procs.monitor gpu0 [UUID,…]`; without UUIDs the set is every card there is. The judgement
is in gpu_core.py, NVML in gpu_nvml.py, its threads in gpu_reader.py.

A card that can't be read is a state with a reason. The process ends itself in two cases, to be
started anew: the driver's library was replaced under it, or a call hangs for good and the kernel
would let it die.

Reads nothing from the bus. Publishes: gpu.load.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from procs.monitor.gpu_core import (
    Card,
    alert_of_set,
    all_alerts,
    all_cleared,
    next_card,
    rules,
    watched,
)
from procs.monitor.gpu_reader import DRIVER, Reader, is_uninterruptible
from shared.gpu_sets import GpuSetsError, is_set_name, parse_sets
from shared.messages import GpuLoad
from shared.service import Context, run
from shared.settings import EXIT_BAD_SETTINGS

CAPABILITIES: frozenset[str] = frozenset()
FIRST_PATIENCE_S = 0.9  # a driver begins more slowly than it reads
STUCK = (
    "a call into the driver has hung for {:.0f} s and can't be ended: try a restart of the machine"
)
HUNG_END_S = 150.0  # then a new process may get further; four lives in ten minutes are no alert


class GpuMonitor:
    """Ties a reader to the bus."""

    def __init__(self, context: Context, gpu_set: str, wanted: Sequence[str]) -> None:
        self._context, self._set, self._wanted = context, gpu_set, wanted
        settings = context.settings
        self._rules = rules(settings.alert_gpu_temperature, settings.alert_gpu_memory)
        self._reader = Reader(wanted, context.log)
        self._cards: dict[str, Card] = {}
        self._why: str | None = None  # nothing has been told yet
        self._since_unix_s = 0.0
        self._is_synced = False

    def beat(self, now_s: float) -> None:
        if self._is_synced:
            self._reader.look()
        else:
            self._reader.look(FIRST_PATIENCE_S)
        stuck = self._stuck()
        why = stuck.get(DRIVER) or self._reader.why()
        self._is_synced = self._is_synced or self._reader.has_answered or bool(why)
        if not self._is_synced:
            load = GpuLoad(at_s=time.monotonic(), synced=False, gpu_set=self._set)
        else:
            self._note(why)
            self._judge(why, stuck, time.monotonic(), time.time())
            load = self._load(time.monotonic(), why)
        self._context.bus.publish(load)

    def _judge(
        self, why: str, stuck: Mapping[str, str], now_s: float, now_unix_s: float
    ) -> None:
        seen = self._reader.seen()
        before, self._cards = self._cards, {}
        for uuid in dict.fromkeys((*self._wanted, *seen)):
            reason = why or stuck.get(uuid, "")
            card = next_card(before.get(uuid), uuid, seen.get(uuid), reason, now_s)
            self._cards[uuid] = watched(card, self._rules, now_s, now_unix_s)
            self._tell(before.get(uuid), card)

    def _load(self, now_s: float, why: str) -> GpuLoad:
        of_set = alert_of_set(self._set, why, self._cards, self._since_unix_s)
        return GpuLoad(
            at_s=now_s, gpu_set=self._set, reason=why,
            gpus=tuple(card.told for card in self._cards.values()),
            alerts=(*of_set, *all_alerts(self._cards)),
            cleared=all_cleared(self._cards),
        )  # fmt: skip

    def _note(self, why: str) -> None:
        if bool(why) != bool(self._why):
            self._since_unix_s = time.time()
            if why:
                self._context.log.error("no card can be read: %s", why)
            elif self._why:
                self._context.log.info("the driver answers again")
        self._why = why

    def _tell(self, before: Card | None, card: Card) -> None:
        told, was_reachable = card.told, before is None or before.told.reachable
        if was_reachable and not told.reachable:
            self._context.log.error("GPU %s is lost: %s", told.uuid, told.reason)
        elif not was_reachable and told.reachable:
            self._context.log.warning("GPU %s is back", told.uuid)

    def _stuck(self) -> dict[str, str]:
        """The calls that nothing ends, by card, with the reason. Where a new process would get
        further this one ends."""
        if self._reader.shared.is_outdated:
            raise RuntimeError("the driver's library was replaced: a new process loads the new one")
        found = {}
        for card, hand in self._reader.hanging().items():
            if hand.hangs_s() < HUNG_END_S:
                continue
            if not is_uninterruptible(hand):
                self._end(card or "the driver", hand.hangs_s())
            found[card] = STUCK.format(hand.hangs_s())
        return found

    def _end(self, card: str, hung_s: float) -> None:
        self._context.log.error(
            "%s: a call has hung for %.0f s: this process ends, another begins", card, hung_s
        )
        os._exit(1)  # an orderly end would wait for the driver's own

    def wake(self, ready: set[int], now_s: float) -> None:
        """Nothing is read but the clock."""

    def descriptors(self) -> Iterable[int]:
        return ()

    def close(self) -> None:
        """The kernel closes what the driver has: a call for it could hang."""


def main(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    try:
        (wanted,) = parse_sets(rest[0]) if rest else ((),)
    except (GpuSetsError, ValueError):
        wanted = None
    if wanted is None or not is_set_name(name) or len(rest) > 1:
        print(f"monitor: must be gpuN [UUID,…], not {' '.join(arguments)}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    return run(f"monitor@{name}", CAPABILITIES, (), lambda c: GpuMonitor(c, name, wanted))
