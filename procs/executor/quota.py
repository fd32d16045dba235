"""How much of the machine tasks may have, and which waiting ones fit now. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shared.messages import Capacity
from shared.taskdir import GIB, MIB, Spec

TRUST_SHARES = (0.25, 0.5, 0.75, 1.0)  # by trust level, of what the owner has not reserved
RESERVED_SHARE = 0.1  # kept for the owner and the worker itself where no setting says otherwise
LEAST_RESERVED_BYTES = 512 * MIB
DISK_FLOOR_BYTES = 256 * MIB  # below this much free space no task is taken
CPU_OVERCOMMIT = 4.0  # CPU is shared by weight: idle tasks must not keep others waiting
MOST_IN_PREPARATION = 8  # Docker starts about one container a core at a time; more only queue
DEFAULT_CPUS, DEFAULT_MEMORY_BYTES, DEFAULT_DISK_BYTES = 1.0, 512 * MIB, GIB
LEAST_CPUS, LEAST_BYTES = 0.01, 8 * MIB
DEFAULT_PROCESSES, MOST_PROCESSES = 256, 4096


@dataclass(frozen=True)
class Machine:
    """What there is."""

    cpus: int
    memory_bytes: int
    disk_free_bytes: int


@dataclass(frozen=True)
class Reserved:
    """What the owner keeps; None: the default share."""

    cpus: float | None = None
    memory_bytes: int | None = None


def capacity(machine: Machine, reserved: Reserved, trust_level: int, max_held: int) -> Capacity:
    """What all tasks together, and so one, may have at this trust level."""
    share = TRUST_SHARES[min(max(trust_level, 0), len(TRUST_SHARES) - 1)]
    cpus = machine.cpus * RESERVED_SHARE if reserved.cpus is None else reserved.cpus
    kept = reserved.memory_bytes
    if kept is None:
        kept = max(int(machine.memory_bytes * RESERVED_SHARE), LEAST_RESERVED_BYTES)
    disk = max(machine.disk_free_bytes - DISK_FLOOR_BYTES, 0)
    return Capacity(
        cpus=round(max(machine.cpus - cpus, 0.0) * share, 3),
        memory_bytes=int(max(machine.memory_bytes - kept, 0) * share),
        disk_bytes=int(disk * share),
        gpus=0,
        max_held=max_held,
        disk_full=disk == 0,
        trust_level=trust_level,
    )


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


def grant(spec: Spec, most: Capacity) -> Grant:
    """Never nothing: what a node without anything to give would give does not fit."""
    return Grant(
        cpus=spec.cpus or max(min(DEFAULT_CPUS, most.cpus), LEAST_CPUS),
        memory_bytes=spec.memory_bytes
        or max(min(DEFAULT_MEMORY_BYTES, most.memory_bytes), LEAST_BYTES),
        disk_bytes=spec.disk_bytes or max(min(DEFAULT_DISK_BYTES, most.disk_bytes), LEAST_BYTES),
        processes=min(spec.processes or DEFAULT_PROCESSES, MOST_PROCESSES),
    )


def choose(waiting: Iterable[Spec], active: Sequence[Grant], in_preparation: int,
           most: Capacity) -> list[Spec]:  # fmt: skip
    """Those that may begin now: by priority, then age; the first that does not fit ends it, so
    that small tasks never starve a large one. One that would not fit into an empty node keeps
    nobody waiting. Memory is never given twice."""
    free = _free(active, most)
    chosen: list[Spec] = []
    for spec in sorted(waiting, key=lambda s: (-s.priority, s.accepted_unix_s, s.task_id)):
        wish = grant(spec, most)
        if shortage(wish, active, most):
            continue
        if in_preparation + len(chosen) >= MOST_IN_PREPARATION or not _fits(wish, free):
            break
        chosen.append(spec)
        free = _less(free, wish)
    return chosen


def shortage(wish: Grant, active: Sequence[Grant], most: Capacity) -> str:
    """Why it could not begin even if nothing else ran, as when the trust level has sunk since
    it was accepted; empty: it could."""
    disk = most.disk_bytes + sum(one.disk_bytes for one in active)  # they give it back
    for name, asked, there in (
        ("CPUs", wish.cpus, most.cpus * CPU_OVERCOMMIT),
        ("bytes of memory", wish.memory_bytes, most.memory_bytes),
        ("bytes of disk", wish.disk_bytes, disk),
    ):
        if asked > there:
            return f"it needs {asked} {name}, tasks on this node may have {there} now"
    return ""


def _free(active: Sequence[Grant], most: Capacity) -> Grant:
    free = Grant(most.cpus * CPU_OVERCOMMIT, most.memory_bytes, most.disk_bytes, 0)
    for one in active:
        free = _less(free, one)
    return free


def _less(free: Grant, one: Grant) -> Grant:
    return replace(
        free,
        cpus=free.cpus - one.cpus,
        memory_bytes=free.memory_bytes - one.memory_bytes,
        disk_bytes=free.disk_bytes - one.disk_bytes,
    )


def _fits(wish: Grant, free: Grant) -> bool:
    return (
        wish.cpus <= free.cpus
        and wish.memory_bytes <= free.memory_bytes
        and wish.disk_bytes <= free.disk_bytes
    )
