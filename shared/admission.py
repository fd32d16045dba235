"""Whether this node takes an assignment. Pure: the facts come from `task.state` and the settings.

The order is the contract's: what is malformed is refused before this (master_link); then what
never fits (FORBIDDEN, TOO_LARGE), then what does not fit now (DRAINING, BUSY).
"""

from dataclasses import dataclass
from enum import StrEnum

from shared.images import image_refusal
from shared.messages import Capacity, NodePhase
from shared.taskdir import Spec

SOON_S = 1.0  # the executor's next STATE will have it
BUSY_RETRY_S = 30.0  # a held task ends at some time; the master may look elsewhere meanwhile


class RefusalKind(StrEnum):
    """The contract's Refusal without its prefix."""

    TOO_LARGE = "TOO_LARGE"
    BUSY = "BUSY"
    DRAINING = "DRAINING"
    FORBIDDEN = "FORBIDDEN"


@dataclass(frozen=True)
class Refused:
    """Why not; `reason` is for a person, `retry_after_s` for BUSY."""

    kind: RefusalKind
    reason: str
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class Node:
    """What admission knows of the node."""

    phase: NodePhase
    phase_reason: str
    trust_level: int
    capacity: Capacity
    held: int
    allowed_images: tuple[str, ...]
    egress_allowed: bool
    egress_ready: bool  # the firewall of task networks is in force


def refusal(spec: Spec, node: Node) -> Refused | None:
    """None: take it."""
    too_large = _too_large(spec, node.capacity)
    if too_large is not None and node.capacity.trust_level != node.trust_level:
        reason = "this node has just been given another trust level"
        too_large = Refused(RefusalKind.BUSY, reason, SOON_S)
    return _forbidden(spec, node) or too_large or _not_now(node)


def _forbidden(spec: Spec, node: Node) -> Refused | None:
    reason = ""
    if spec.min_trust_level > node.trust_level:
        reason = f"min_trust_level is {spec.min_trust_level}, this node's is {node.trust_level}"
    elif policy := image_refusal(spec.image, node.allowed_images):
        reason = policy
    elif spec.egress and not node.egress_allowed:
        reason = "network EGRESS: the owner has set EGRESS=off"
    elif spec.egress and not node.egress_ready:
        reason = "network EGRESS: the firewall of task networks is not in force on this node"
    return Refused(RefusalKind.FORBIDDEN, reason) if reason else None


def _too_large(spec: Spec, capacity: Capacity) -> Refused | None:
    for field, asked, most in (
        ("cpus", spec.cpus, capacity.cpus),
        ("memory_bytes", spec.memory_bytes, capacity.memory_bytes),
        ("disk_bytes", spec.disk_bytes, capacity.disk_bytes),
        ("gpus", spec.gpus, capacity.gpus),
    ):
        if asked > most:
            reason = f"resources.{field} is {asked}, a task on this node may have {most}"
            return Refused(RefusalKind.TOO_LARGE, reason)
    return None


def _not_now(node: Node) -> Refused | None:
    if node.phase is NodePhase.DRAINING:
        return Refused(RefusalKind.DRAINING, "this node finishes what it has")
    if node.phase is not NodePhase.READY:
        reason = f"this node is {node.phase}: {node.phase_reason}"
        return Refused(RefusalKind.BUSY, reason, BUSY_RETRY_S)
    if node.held >= node.capacity.max_held:
        reason = f"this node holds {node.held} tasks, its limit"
        return Refused(RefusalKind.BUSY, reason, BUSY_RETRY_S)
    return None
