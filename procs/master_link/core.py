"""What master_link decides of attempts and of the node. Pure: no clock, no disk, no network.

An attempt is held, then delivered (the master has it, the executor still lets it go), then kept
for a day for a master that lost its memory, then gone: only remembered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shared import sentences
from shared.messages import (
    HeldTask,
    NodePhase,
    OwnerWant,
    PhaseAt,
    ProcessState,
    StopReason,
    TaskPhase,
    TaskState,
    WantedTask,
)
from shared.sentences import Refusal, Said
from shared.taskdir import InputSpec, TaskKey

DAY_S = 86400.0  # delivered attempts can be had again, early cancels are remembered, for so long
COMPONENT_DOWN_S = 15.0  # a program that is restarted is back sooner
PROGRESS_EVERY_S = 1.0
DEFAULT_HEARTBEAT_S = 10.0
SHORTEST_HEARTBEAT_S, LONGEST_HEARTBEAT_S = 0.1, 300.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 30.0  # of one call; the link itself has shared/backoff.py
RUNNING_STATE = "RUNNING"  # supervisor's word for a program that is up


class Stage(StrEnum):
    """Where an attempt stands between the master and this node."""

    HELD = "held"
    DELIVERED = "delivered"
    KEPT = "kept"
    GONE = "gone"


@dataclass
class Attempt:
    """What master_link knows of an attempt; a row of link.db."""

    key: TaskKey
    digest: str = ""
    accepted_unix_s: float = 0.0
    stage: Stage = Stage.HELD
    stop: StopReason | None = None
    stop_detail: str = ""
    phase_sent: TaskPhase | None = None
    final: TaskPhase | None = None
    delivered_unix_s: float = 0.0
    redeliver: bool = False
    size_bytes: int = 0
    inputs: tuple[InputSpec, ...] = field(default=(), compare=False)  # from the spec
    dropped_at_s: float = field(default=float("inf"), compare=False)  # of the want that lacks it

    @property
    def undelivered(self) -> bool:
        """The master is still owed its log, output and result."""
        return self.redeliver or (
            self.stage is Stage.HELD and self.stop is not StopReason.FORGOTTEN
        )


# ------------------------------------------------------------------ an assignment comes


@dataclass(frozen=True)
class Take:
    """New here: admit it, and stop the older attempts of the same task."""

    supersedes: tuple[TaskKey, ...] = ()


@dataclass(frozen=True)
class Same:
    """Held already: accepted, and nothing else happens."""


@dataclass(frozen=True)
class Again:
    """Delivered within the last day: accepted, and delivered again."""


@dataclass(frozen=True)
class Invalid:
    """Never, anywhere."""

    said: Said[Refusal]


Decision = Take | Same | Again | Invalid


def decide(key: TaskKey, digest: str, known: Sequence[Attempt], now_unix_s: float) -> Decision:
    """What to do with an assignment, from what is known of all attempts of its task."""
    same = next((a for a in known if a.key == key), None)
    if same is not None:
        return _repeated(same, digest, now_unix_s)
    newest = max((a.key.attempt for a in known), default=0)
    if newest > key.attempt:
        return Invalid(sentences.ATTEMPT_OLD.say(attempt=key.attempt, newest=newest))
    return Take(tuple(a.key for a in known if a.stage is Stage.HELD and a.stop is None))


def _repeated(same: Attempt, digest: str, now_unix_s: float) -> Decision:
    if same.digest and digest != same.digest:
        return Invalid(sentences.CONTENT_DIFFERS.say(attempt=same.key.attempt))
    if same.stop is StopReason.FORGOTTEN:
        return Invalid(sentences.ATTEMPT_FORGOTTEN.say(attempt=same.key.attempt))
    if same.stage is Stage.HELD or same.redeliver:
        return Same()
    if same.stage is not Stage.GONE and now_unix_s - same.delivered_unix_s < DAY_S:
        return Again()
    return Invalid(sentences.DELIVERED_BEFORE.say(attempt=same.key.attempt))


# ------------------------------------------------------------------ what is wanted


def wanted(
    attempts: Iterable[Attempt],
    held: dict[TaskKey, HeldTask],
    owner_stops: Iterable[str],
) -> tuple[WantedTask, ...]:
    """What `task.want` says: each attempt that is not yet settled, with its reason to end."""
    stopped_by_owner = set(owner_stops)
    return tuple(
        _wanted(attempt, attempt.key.directory in stopped_by_owner)
        for attempt in attempts
        if attempt.stage is Stage.HELD and not is_forgotten(attempt, held.get(attempt.key))
    )


def _wanted(attempt: Attempt, stopped_by_owner: bool) -> WantedTask:
    stop, detail = attempt.stop, attempt.stop_detail
    if stop is None and stopped_by_owner:
        stop = StopReason.OWNER
    task_id, number = attempt.key
    return WantedTask(task_id=task_id, attempt=number, stop=stop, stop_detail=detail)


def is_forgotten(attempt: Attempt, held: HeldTask | None) -> bool:
    """The master wants nothing of it and it has ended: let it go."""
    return attempt.stop is StopReason.FORGOTTEN and held is not None and held.phase.is_final


def is_released(attempt: Attempt, state: TaskState) -> bool:
    """The executor has let it go: its news is newer than our want without the attempt."""
    return state.at_s > attempt.dropped_at_s and attempt.key not in held_tasks(state)


def held_tasks(state: TaskState) -> dict[TaskKey, HeldTask]:
    return {TaskKey(task.task_id, task.attempt): task for task in state.tasks}


# ------------------------------------------------------------------ statuses


@dataclass(frozen=True)
class Status:
    """The next status to report."""

    phase: TaskPhase
    detail: str
    at_unix_s: float


@dataclass(frozen=True)
class NotYet:
    """Nothing to report before `wait_s`; None: before there is news."""

    wait_s: float | None = None


@dataclass(frozen=True)
class AllTold:
    """Ended, and every phase is reported: the result may go."""


ORDER = {phase: rank for rank, phase in enumerate(p for p in TaskPhase if not p.is_final)}


def next_status(
    task: HeldTask | None, phase_sent: TaskPhase | None, detail_sent: str, since_sent_s: float
) -> Status | NotYet | AllTold:
    """Each phase once and in order; then progress, the newest detail, once a second at most."""
    if task is None:
        return NotYet()
    for entered in sorted(_to_tell(task, phase_sent), key=lambda p: ORDER[p.phase]):
        detail = task.detail if entered.phase is task.phase else ""
        return Status(entered.phase, detail, entered.at_unix_s)
    if task.phase.is_final:
        return AllTold()
    if task.phase is not phase_sent or task.detail in ("", detail_sent):
        return NotYet()
    if since_sent_s < PROGRESS_EVERY_S:
        return NotYet(PROGRESS_EVERY_S - since_sent_s)
    return Status(task.phase, task.detail, 0.0)


def _to_tell(task: HeldTask, phase_sent: TaskPhase | None) -> list[PhaseAt]:
    told = -1 if phase_sent is None else ORDER[phase_sent]
    return [
        entered
        for entered in task.phases
        if entered.phase in ORDER
        and ORDER[entered.phase] > told
        and (entered.phase is not TaskPhase.ACCEPTED or _waits_with_reason(task))
    ]


def _waits_with_reason(task: HeldTask) -> bool:
    return task.phase is TaskPhase.ACCEPTED and task.detail != ""


def heartbeat_s(asked_s: float) -> float:
    """The master's interval, as far as it makes sense; 0 or less: none was asked for."""
    if asked_s <= 0:
        return DEFAULT_HEARTBEAT_S
    return min(max(asked_s, SHORTEST_HEARTBEAT_S), LONGEST_HEARTBEAT_S)


def retry_s(failures: int, uniform: float) -> float:
    """Before a call is tried again; `uniform` in [0, 1)."""
    longest = min(FIRST_RETRY_S * 2.0 ** min(failures, 10), LONGEST_RETRY_S)
    return longest * (0.5 + uniform / 2)


# ------------------------------------------------------------------ the node's state

RANK = {phase: rank for rank, phase in enumerate(NodePhase)}


class Components:
    """Which programs are down for long, counted in this reader's own ticks."""

    def __init__(self) -> None:
        self._down_since_s: dict[str, float] = {}

    def down(self, state: ProcessState | None, now_s: float) -> tuple[str, ...]:
        """Names of programs that were not RUNNING for 15 s; no news changes nothing."""
        if state is not None:
            self._down_since_s = {
                p.name: self._down_since_s.get(p.name, now_s)
                for p in state.processes
                if p.state != RUNNING_STATE
            }
        return tuple(
            name for name, at_s in self._down_since_s.items() if now_s - at_s >= COMPONENT_DOWN_S
        )


def node_state(
    owner: OwnerWant | None,
    desired: NodePhase,
    state: TaskState | None,
    components_down: tuple[str, ...],
) -> tuple[NodePhase, str]:
    """The highest of what owner, master and the node itself say, and why."""
    claims = [(NodePhase.READY, "")]
    if owner is not None and owner.wish is not NodePhase.READY:
        claims.append((owner.wish, "the machine's owner wants it so"))
    if desired in (NodePhase.DRAINING, NodePhase.PAUSED):
        claims.append((desired, "the master wants it so"))
    claims += [(NodePhase.DEGRADED, reason) for reason in _faults(state, components_down)]
    return max(claims, key=lambda claim: RANK[claim[0]])


def _faults(state: TaskState | None, components_down: tuple[str, ...]) -> list[str]:
    reasons = [f"{name} is down" for name in components_down]
    if state is not None and not state.engine.available:
        reasons.insert(0, f"Docker: {state.engine.detail or 'not available'}")
    if state is not None and state.capacity.disk_full:
        reasons.insert(0, "the disk is full")
    return reasons
