"""How much of the machine tasks may have, and which waiting ones fit now. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from procs.executor.gpus import Card, best_fit, free_cards
from shared.admission import gpu_memory
from shared.messages import Capacity
from shared.taskdir import GIB, MIB, Spec

TRUST_SHARES = (0.25, 0.5, 0.75, 1.0)  # by trust level, of what the owner has not reserved
RESERVED_SHARE = 0.1  # kept for the owner and the worker itself where no setting says otherwise
LEAST_RESERVED_BYTES = 512 * MIB
WORKER_BYTES = 256 * MIB  # kept for the worker itself, whatever the owner says
DISK_FLOOR_BYTES = 256 * MIB  # below this much free space no task is taken
CPU_OVERCOMMIT = 4.0  # CPU is shared by weight: idle tasks must not keep others waiting
MOST_IN_PREPARATION = 8  # Docker starts about one container a core at a time; more only queue
DEFAULT_CPUS, DEFAULT_MEMORY_BYTES, DEFAULT_DISK_BYTES = 1.0, 512 * MIB, GIB
LEAST_CPUS, LEAST_BYTES = 0.01, 8 * MIB  # Docker refuses less memory than 6
DEFAULT_PROCESSES, MOST_PROCESSES = 256, 4096


@dataclass(frozen=True)
class Machine:
    """What there is. `gpus`: the healthy ones."""

    cpus: int
    memory_bytes: int
    disk_free_bytes: int
    disk_written_bytes: int = 0  # by tasks that run: theirs, and free again when they end
    gpus: tuple[Card, ...] = ()
    gpus_known: bool = True
    gpus_lost: int = 0


@dataclass(frozen=True)
class Reserved:
    """What the owner keeps; None: the default share."""

    cpus: float | None = None
    memory_bytes: int | None = None


def share_of(trust_level: int) -> float:
    return TRUST_SHARES[min(max(trust_level, 0), len(TRUST_SHARES) - 1)]


def capacity(machine: Machine, reserved: Reserved, trust_level: int, max_held: int) -> Capacity:
    """What all tasks together, and so one, may have at this trust level."""
    share = share_of(trust_level)
    cpus = machine.cpus * RESERVED_SHARE if reserved.cpus is None else reserved.cpus
    disk = max(machine.disk_free_bytes + machine.disk_written_bytes - DISK_FLOOR_BYTES, 0)
    sizes = sorted((card.memory_bytes for card in machine.gpus), reverse=True)
    return Capacity(
        cpus=round(max(machine.cpus - cpus, 0.0) * share, 3),
        memory_bytes=int(max(machine.memory_bytes - _kept_bytes(machine, reserved), 0) * share),
        disk_bytes=int(disk * share),
        gpus=int(len(machine.gpus) * share),
        max_held=max_held,
        disk_full=machine.disk_free_bytes <= DISK_FLOOR_BYTES,
        trust_level=trust_level,
        gpu_memory_bytes=tuple(sizes),
        gpus_known=machine.gpus_known,
        gpus_lost=machine.gpus_lost,
    )


def _kept_bytes(machine: Machine, reserved: Reserved) -> int:
    """Of memory, for the owner and the worker."""
    if reserved.memory_bytes is None:
        return max(int(machine.memory_bytes * RESERVED_SHARE), LEAST_RESERVED_BYTES)
    return max(reserved.memory_bytes, WORKER_BYTES)


@dataclass(frozen=True)
class Grant:
    """What one task gets: its wishes, with the node's defaults where it named none."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    processes: int
    network: str = ""  # the bridge that is its own until it is cleaned away; "": none
    layer: str = ""  # its installed requirements
    image_digest: str = ""  # noted beside it, for the report of a later life
    pull_s: float = 0.0
    gpus: tuple[str, ...] = ()  # UUIDs: its alone until it has ended


def grant(spec: Spec, most: Capacity) -> Grant:
    """Never nothing: what a node without anything to give would give does not fit."""
    return Grant(
        cpus=spec.cpus or max(min(DEFAULT_CPUS, most.cpus), LEAST_CPUS),
        memory_bytes=max(
            spec.memory_bytes or min(DEFAULT_MEMORY_BYTES, most.memory_bytes), LEAST_BYTES
        ),
        disk_bytes=spec.disk_bytes or max(min(DEFAULT_DISK_BYTES, most.disk_bytes), LEAST_BYTES),
        processes=min(spec.processes or DEFAULT_PROCESSES, MOST_PROCESSES),
    )


@dataclass(frozen=True)
class _Free:
    """What is left to give; less than nothing: it is set aside for one that waits for more."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    gpus: int
    cards: tuple[Card, ...]

    @classmethod
    def beside(cls, active: Sequence[Grant], most: Capacity, cards: Sequence[Card]) -> "_Free":
        held = [uuid for one in active for uuid in one.gpus]
        counted = sum(card.uuid in held for card in cards)  # a lost one takes no place of another
        free = cls(
            most.cpus * CPU_OVERCOMMIT, most.memory_bytes, most.disk_bytes,
            most.gpus - counted, free_cards(cards, held),
        )  # fmt: skip
        for one in active:
            free = free.less(one, 0, ())
        return free

    def less(self, one: Grant, gpus: int, cards: Sequence[Card]) -> "_Free":
        return _Free(
            self.cpus - one.cpus,
            self.memory_bytes - one.memory_bytes,
            self.disk_bytes - one.disk_bytes,
            self.gpus - gpus,
            tuple(card for card in self.cards if card not in cards),
        )

    def has(self, wish: Grant, gpus: int, cards: Sequence[Card]) -> bool:
        return (
            wish.cpus <= self.cpus
            and wish.memory_bytes <= self.memory_bytes
            and wish.disk_bytes <= self.disk_bytes
            and gpus <= min(len(cards), self.gpus if gpus else 0)
        )

    @property
    def is_used_up(self) -> bool:
        return min(self.cpus, self.memory_bytes, self.disk_bytes) <= 0


def choose(waiting: Iterable[Spec], active: Sequence[Grant], in_preparation: int,
           most: Capacity, cards: Sequence[Card] = ()) -> list[tuple[Spec, Grant]]:  # fmt: skip
    """Those that may begin now, and with what: by priority, then age. For one that does not fit
    yet all that it needs is set aside: small tasks never starve a large one, and what only waits
    for a GPU keeps no other from memory that is left. One that would not fit into an empty node
    keeps nobody waiting. Neither memory nor a card (of `cards`, the healthy ones) is given
    twice."""
    free = _Free.beside(active, most, cards)
    chosen: list[tuple[Spec, Grant]] = []
    for spec in sorted(waiting, key=lambda s: (-s.priority, s.accepted_unix_s, s.task_id)):
        wish = grant(spec, most)
        if shortage(spec, wish, active, most):
            continue
        if in_preparation + len(chosen) >= MOST_IN_PREPARATION or free.is_used_up:
            break
        picked = best_fit(spec.gpus, spec.gpu_memory_bytes, free.cards)
        if free.has(wish, spec.gpus, picked):
            chosen.append((spec, replace(wish, gpus=tuple(card.uuid for card in picked))))
        free = free.less(wish, spec.gpus, picked)
    return chosen


def shortage(spec: Spec, wish: Grant, active: Sequence[Grant], most: Capacity) -> str:
    """Why it could not begin even if nothing else ran, as when the trust level has sunk since
    it was accepted; empty: it could."""
    disk = most.disk_bytes + sum(one.disk_bytes for one in active)  # they give it back
    for name, asked, there in (
        ("CPUs", wish.cpus, most.cpus * CPU_OVERCOMMIT),
        ("bytes of memory", wish.memory_bytes, most.memory_bytes),
        ("bytes of disk", wish.disk_bytes, disk),
        ("GPUs", spec.gpus, most.gpus),
        ("bytes of memory on each GPU", spec.gpu_memory_bytes, gpu_memory(spec.gpus, most)),
    ):
        if asked > there:
            return f"it needs {asked} {name}, tasks on this node may have {there} now"
    return ""
