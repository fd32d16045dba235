"""What the master decides. Pure: no clock, no database, no network.

An attempt moves by the table `MOVES`; a task that waits gets its node from `place`. Times are
passed in. Every limit and wait of the master stands here, with its reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

HEARTBEAT_INTERVAL_S = 10.0
REPORT_INTERVAL_S = 30.0
LOST_AFTER_S = 60.0  # six missed heartbeats; a worker's slowest wait between tries is 60 s too
MISSED_BEATS = 2  # one heartbeat may cross the assignment, two in a row may not
MAX_ATTEMPTS = 3
BUSY_RETRY_S = 5.0  # where a node that is busy names no time
FIRST_RESEND_S, LAST_RESEND_S = 1.0, 10.0  # after a call that nobody answered
SHARES = {0: 0.25, 1: 0.5, 2: 0.75}  # of a node's resources, by trust level; above: all


class AttemptPhase(StrEnum):
    """Where an attempt stands with the master."""

    WAITING = "waiting"  # for a node
    OFFERED = "offered"  # a node was chosen; it has not said yes
    HELD = "held"  # durable on the node
    ENDED = "ended"  # with it, the task
    SUPERSEDED = "superseded"  # another attempt follows, or the last one was lost


class Event(StrEnum):
    """What can happen to an attempt."""

    PLACED = "placed"
    ACCEPTED = "accepted"
    PUT_OFF = "put off"  # refused by this node: busy, or never here
    REFUSED = "refused"  # malformed, or refused by every node
    MISSING = "missing"  # two heartbeats in a row did not name it
    LOST = "lost"  # its node was silent for too long
    CANCELLED = "cancelled"  # asked to, and no node holds it
    FINISHED = "finished"  # its result is here
    INTERRUPTED = "interrupted"  # its result is here, and another attempt is reasonable


_W, _O, _H = AttemptPhase.WAITING, AttemptPhase.OFFERED, AttemptPhase.HELD
_END, _OLD = AttemptPhase.ENDED, AttemptPhase.SUPERSEDED

MOVES: dict[tuple[AttemptPhase, Event], AttemptPhase] = {
    (_W, Event.PLACED): _O,
    (_W, Event.REFUSED): _END,
    (_W, Event.CANCELLED): _END,
    (_O, Event.ACCEPTED): _H,
    (_O, Event.PUT_OFF): _W,
    (_O, Event.REFUSED): _END,
    (_O, Event.CANCELLED): _END,
    (_O, Event.LOST): _OLD,
    (_O, Event.FINISHED): _END,  # the answer to the offer was lost
    (_O, Event.INTERRUPTED): _OLD,
    (_H, Event.MISSING): _O,
    (_H, Event.CANCELLED): _END,
    (_H, Event.LOST): _OLD,
    (_H, Event.FINISHED): _END,
    (_H, Event.INTERRUPTED): _OLD,
}

# News that came late or twice, and changes nothing.
IGNORED: frozenset[tuple[AttemptPhase, Event]] = frozenset(
    {(phase, event) for phase in (_END, _OLD) for event in Event}
    | {(_W, event) for event in (Event.ACCEPTED, Event.PUT_OFF, Event.MISSING, Event.LOST)}
    | {(_O, Event.MISSING)}
    | {(_H, event) for event in (Event.ACCEPTED, Event.PUT_OFF, Event.REFUSED)}
)


class IllegalMove(Exception):
    """An event came that this phase cannot know; nothing was changed."""


def move(phase: AttemptPhase, event: Event) -> AttemptPhase | None:
    """The next phase; None where the event is no news."""
    if (phase, event) in IGNORED:
        return None
    if (phase, event) not in MOVES:
        raise IllegalMove(f"an attempt that is {phase} cannot be {event}")
    return MOVES[phase, event]


def is_live(phase: AttemptPhase) -> bool:
    return phase in (_W, _O, _H)


def result_event(worth_another: bool, attempt: int, cancel_wanted: bool) -> Event:
    """How a result moves its attempt. `worth_another`: its cause was not the task's own."""
    if worth_another and attempt < MAX_ATTEMPTS and not cancel_wanted:
        return Event.INTERRUPTED
    return Event.FINISHED


def loss_event(cancel_wanted: bool) -> Event:
    """How the loss of its node moves an attempt."""
    return Event.CANCELLED if cancel_wanted else Event.LOST


def resend_delay_s(failures: int) -> float:
    """Seconds until an offer or a cancellation that nobody answered is sent again."""
    return min(FIRST_RESEND_S * 2.0 ** min(failures - 1, 10), LAST_RESEND_S)


# ------------------------------------------------------------------ placement


@dataclass(frozen=True)
class Demand:
    """What a task asks of a node; 0 is the node's own default."""

    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    min_trust_level: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """An attempt without a node. `refused_by`: nodes that will never take it, and why."""

    task_id: str
    attempt: int
    priority: int
    submitted_unix_s: float
    demand: Demand
    refused_by: Mapping[str, str] = field(default_factory=dict)
    failed_on: frozenset[str] = frozenset()  # nodes of earlier attempts


@dataclass(frozen=True)
class Node:
    """A node as placement sees it. `ready`: heard lately, takes tasks, not put off for now."""

    node_id: str
    ready: bool
    trust_level: int
    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpu_memory_bytes: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    given: tuple[Demand, ...] = ()


@dataclass(frozen=True)
class Offer:
    """This attempt, to this node."""

    task_id: str
    attempt: int
    node_id: str


@dataclass(frozen=True)
class Hopeless:
    """Every node has refused this attempt for good."""

    task_id: str
    attempt: int
    reason: str


@dataclass
class _Room:
    """What a node has left while one plan is made."""

    node: Node
    given: list[Demand]

    def takes(self, demand: Demand) -> bool:
        """An idle node is asked whatever the size: it alone knows its quota, and says why not."""
        node = self.node
        if demand.min_trust_level > node.trust_level or not _labels_fit(demand, node):
            return False
        if not self.given:
            return True
        if len(self.given) >= _most_held(node):
            return False
        share = SHARES.get(node.trust_level, 1.0)
        asked = [*self.given, demand]
        return (
            sum(d.cpus for d in asked) <= node.cpus * share
            and sum(d.memory_bytes for d in asked) <= node.memory_bytes * share
            and sum(d.disk_bytes for d in asked) <= node.disk_bytes * share
            and sum(d.gpus for d in asked) <= len(node.gpu_memory_bytes) * share
            and _gpus_fit(demand, node)
        )

    def crowd(self) -> float:
        return len(self.given) / max(self.node.cpus, 1.0)


def place(waiting: Iterable[Waiting], nodes: Iterable[Node]) -> tuple[list[Offer], list[Hopeless]]:
    """Higher priority first, then older; each to the least crowded node that takes it."""
    rooms = [_Room(node, list(node.given)) for node in nodes]
    offers: list[Offer] = []
    hopeless: list[Hopeless] = []
    for task in sorted(waiting, key=lambda w: (-w.priority, w.submitted_unix_s, w.task_id)):
        open_rooms = [r for r in rooms if r.node.node_id not in task.refused_by]
        if not open_rooms and task.refused_by:
            reason = "; ".join(dict.fromkeys(task.refused_by.values()))
            hopeless.append(Hopeless(task.task_id, task.attempt, reason))
            continue
        fitting = [r for r in open_rooms if r.node.ready and r.takes(task.demand)]
        if fitting:
            room = min(fitting, key=lambda r: _preference(r, task))
            room.given.append(task.demand)
            offers.append(Offer(task.task_id, task.attempt, room.node.node_id))
    return offers, hopeless


def _preference(room: _Room, task: Waiting) -> tuple[bool, float, str]:
    """Lowest first: where the task has not failed before, then where there is most room."""
    return room.node.node_id in task.failed_on, room.crowd(), room.node.node_id


def why_waiting(demand: Demand, nodes: Iterable[Node]) -> str:
    """For a person: what a task that has no node waits for."""
    known = list(nodes)
    if not known:
        return "no node has joined yet"
    trusted = [n for n in known if n.trust_level >= demand.min_trust_level]
    if not trusted:
        return f"no node is trusted at level {demand.min_trust_level}"
    labelled = [n for n in trusted if _labels_fit(demand, n)]
    if not labelled:
        return f"no node carries the labels {dict(demand.labels)}"
    if not any(n.ready for n in labelled):
        return "no node takes tasks now"
    return "the nodes are full"


def _labels_fit(demand: Demand, node: Node) -> bool:
    return all(node.labels.get(key) == value for key, value in demand.labels.items())


def _gpus_fit(demand: Demand, node: Node) -> bool:
    large = [m for m in node.gpu_memory_bytes if m >= demand.gpu_memory_bytes]
    return demand.gpus <= len(large)


def _most_held(node: Node) -> int:
    """A few more than run at once, so that the next one need not wait for us."""
    return 8 + int(4 * node.cpus)
