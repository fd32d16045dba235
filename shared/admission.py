"""Whether this node takes an assignment. Pure: the facts come from `task.state` and the settings.

The order is the contract's: what is malformed is refused before this (master_link); then what
never fits (FORBIDDEN, TOO_LARGE), then what does not fit now (DRAINING, BUSY).
"""

import math
import sys
from dataclasses import dataclass

import msgspec

from shared import sentences
from shared.images import image_refusal
from shared.messages import Capacity, NodePhase
from shared.sentences import Refusal, Said
from shared.taskdir import Spec

SOON_S = 1.0  # the executor's next STATE will have it
BUSY_RETRY_S = 30.0  # a held task ends at some time; the master may look elsewhere meanwhile


@dataclass(frozen=True)
class Refused:
    """Why not; `retry_after_s` for BUSY."""

    said: Said[Refusal]
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
    egress_ready: bool | None  # the firewall of task networks is in force; None: it may be soon
    sandbox: str = "runc"


def refusal(spec: Spec, node: Node) -> Refused | None:
    """None: take it."""
    too_large = _too_large(spec, node.capacity)
    if too_large is not None and node.capacity.trust_level != node.trust_level:
        too_large = Refused(sentences.TRUST_CHANGED.say(), SOON_S)
    if too_large is not None and spec.gpus and not node.capacity.gpus_known:
        too_large = Refused(sentences.GPUS_UNKNOWN.say(), SOON_S)
    if too_large is not None and spec.gpus and _too_large(spec, _mended(node.capacity)) is None:
        too_large = Refused(sentences.GPUS_LOST.say(lost=node.capacity.gpus_lost), BUSY_RETRY_S)
    return _forbidden(spec, node) or too_large or _not_now(spec, node)


def _forbidden(spec: Spec, node: Node) -> Refused | None:
    said = None
    if spec.min_trust_level > node.trust_level:
        said = sentences.TRUST_TOO_LOW.say(asked=spec.min_trust_level, level=node.trust_level)
    elif policy := image_refusal(spec.image, node.allowed_images):
        said = policy
    elif network := _network(spec, node):
        said = network
    return Refused(said) if said else None


def _network(spec: Spec, node: Node) -> Said[Refusal] | None:
    """Requirements need one too: only the executor knows which are installed already."""
    if (spec.egress or spec.requirements) and node.sandbox == "runsc":
        return sentences.NO_NETWORK_IN_GVISOR.say()
    if spec.egress and not node.egress_allowed:
        return sentences.EGRESS_OFF.say()
    if spec.egress and node.egress_ready is False:
        return sentences.EGRESS_NOT_READY.say()
    if spec.requirements and not node.egress_allowed:
        return sentences.REQUIREMENTS_EGRESS_OFF.say()
    if spec.requirements and node.egress_ready is False:
        return sentences.REQUIREMENTS_EGRESS_NOT_READY.say()
    return None


def _too_large(spec: Spec, capacity: Capacity) -> Refused | None:
    """A full disk is no size: it is the node's state, and passes."""
    if not capacity.memory_bytes or not capacity.cpus:
        return Refused(sentences.NOTHING_TO_GIVE.say())
    for field, asked, most in (
        ("cpus", spec.cpus, capacity.cpus),
        ("memory_bytes", spec.memory_bytes, capacity.memory_bytes),
        ("disk_bytes", spec.disk_bytes, math.inf if capacity.disk_full else capacity.disk_bytes),
        ("gpus", spec.gpus, capacity.gpus),
        ("gpu_memory_bytes", spec.gpu_memory_bytes, gpu_memory(spec.gpus, capacity)),
    ):
        if asked > most:
            said = sentences.RESOURCE_TOO_LARGE.say(field=field, asked=asked, most=most)
            return Refused(said)
    return None


def _mended(capacity: Capacity) -> Capacity:
    """With the cards that are lost now, of any size: they may be back when it is sent again."""
    lost = capacity.gpus_lost
    sizes = (sys.maxsize,) * lost + capacity.gpu_memory_bytes
    return msgspec.structs.replace(capacity, gpus=capacity.gpus + lost, gpu_memory_bytes=sizes)


def gpu_memory(gpus: int, capacity: Capacity) -> float:
    """The most that each of so many GPUs has; who asks for none may ask any size of them."""
    if not gpus:
        return math.inf
    sizes = capacity.gpu_memory_bytes  # the largest first
    return sizes[gpus - 1] if gpus <= len(sizes) else 0


def _not_now(spec: Spec, node: Node) -> Refused | None:
    if node.phase is NodePhase.DRAINING:
        return Refused(sentences.DRAINING.say())
    if node.phase is not NodePhase.READY:
        said = sentences.NODE_NOT_READY.say(phase=node.phase, reason=node.phase_reason)
        return Refused(said, BUSY_RETRY_S)
    if node.held >= node.capacity.max_held:
        return Refused(sentences.NODE_FULL.say(held=node.held), BUSY_RETRY_S)
    if (spec.egress or spec.requirements) and node.egress_ready is None:
        return Refused(sentences.EGRESS_AWAY.say(), SOON_S)
    return None
