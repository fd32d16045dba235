"""Every refusal, and which comes first."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from shared.admission import BUSY_RETRY_S, SOON_S, Node, Refused, refusal
from shared.messages import Capacity, NodePhase
from shared.sentences import Refusal
from shared.taskdir import Spec

CAPACITY = Capacity(
    cpus=2.0, memory_bytes=1000, disk_bytes=500, gpus=2, max_held=3, trust_level=1,
    gpu_memory_bytes=(80, 24),
)  # fmt: skip
NODE = Node(
    phase=NodePhase.READY,
    phase_reason="",
    trust_level=1,
    capacity=CAPACITY,
    held=0,
    allowed_images=("debian:*", "team/**"),
    egress_allowed=True,
    egress_ready=True,
)
SPEC = Spec(task_id="a", attempt=1, image="debian:12")
FULL = msgspec.structs.replace(
    SPEC, cpus=2.0, memory_bytes=1000, disk_bytes=500, gpus=1, min_trust_level=1, egress=True
)
NEEDS: dict[str, Any] = {"requirements": ("numpy",)}
FORBIDDEN, TOO_LARGE = Refusal.FORBIDDEN, Refusal.TOO_LARGE
BUSY, DRAINING = Refusal.BUSY, Refusal.DRAINING
PAUSED_NODE: dict[str, Any] = {"phase": NodePhase.PAUSED, "phase_reason": "the owner paused it"}
DEGRADED_NODE: dict[str, Any] = {"phase": NodePhase.DEGRADED, "phase_reason": "Docker is away"}


def judge(spec: dict[str, Any], node: dict[str, Any]) -> Refused | None:
    return refusal(msgspec.structs.replace(SPEC, **spec), replace(NODE, **node))


@pytest.mark.parametrize(
    ("spec", "node"),
    [
        pytest.param({}, {}, id="the node's defaults"),
        pytest.param(NEEDS, {}, id="requirements"),
        pytest.param({}, {"held": 2}, id="the last free place"),
        pytest.param({}, {"egress_allowed": False, "egress_ready": False}, id="no egress asked"),
        pytest.param({"image": "team/x/y:1"}, {}, id="two stars cross slashes"),
    ],
)
def test_taken(spec: dict[str, Any], node: dict[str, Any]) -> None:
    assert judge(spec, node) is None


def test_a_task_may_have_all_there_is() -> None:
    assert refusal(FULL, NODE) is None


@pytest.mark.parametrize(
    ("spec", "node", "kind", "said"),
    [
        pytest.param({"min_trust_level": 2}, {}, FORBIDDEN, "min_trust_level is 2", id="trust"),
        pytest.param({"image": "evil:1"}, {}, FORBIDDEN, "ALLOWED_IMAGES", id="image"),
        pytest.param({"image": "evil/debian:1"}, {}, FORBIDDEN, "ALLOWED_IMAGES", id="suffix"),
        pytest.param({}, {"allowed_images": ()}, FORBIDDEN, "ALLOWED_IMAGES", id="no image"),
        pytest.param({"egress": True}, {"egress_allowed": False}, FORBIDDEN, "=off", id="egress"),
        pytest.param({"egress": True}, {"egress_ready": False}, FORBIDDEN, "firewall", id="open"),
        pytest.param(NEEDS, {"egress_allowed": False}, FORBIDDEN, "over the network", id="needs"),
        pytest.param(NEEDS, {"egress_ready": False}, FORBIDDEN, "firewall", id="needs, open"),
        pytest.param({"egress": True}, {"sandbox": "runsc"}, FORBIDDEN, "gVisor", id="gVisor"),
        pytest.param(NEEDS, {"sandbox": "runsc"}, FORBIDDEN, "gVisor", id="needs, gVisor"),
        pytest.param({"cpus": 2.01}, {}, TOO_LARGE, "cpus is 2.01", id="cpus"),
        pytest.param({"memory_bytes": 1001}, {}, TOO_LARGE, "memory_bytes is 1001", id="memory"),
        pytest.param({"disk_bytes": 501}, {}, TOO_LARGE, "disk_bytes is 501", id="disk"),
        pytest.param({"gpus": 3}, {}, TOO_LARGE, "gpus is 3", id="gpus"),
        pytest.param({"gpus": 2, "gpu_memory_bytes": 25}, {}, TOO_LARGE,
                     "gpu_memory_bytes is 25, a task on this node may have 24", id="gpu memory"),
        pytest.param({"gpus": 1, "gpu_memory_bytes": 81}, {}, TOO_LARGE, "may have 80", id="none"),
        pytest.param({}, {"phase": NodePhase.DRAINING}, DRAINING, "finishes", id="draining"),
        pytest.param({}, PAUSED_NODE, BUSY, "paused: the owner paused it", id="paused"),
        pytest.param({}, DEGRADED_NODE, BUSY, "degraded: Docker is away", id="degraded"),
        pytest.param({}, {"held": 3}, BUSY, "holds 3 tasks", id="full"),
        pytest.param({"egress": True}, {"egress_ready": None}, BUSY, "moment", id="no word"),
    ],
)
def test_refused(spec: dict[str, Any], node: dict[str, Any], kind: Refusal, said: str) -> None:
    refused = judge(spec, node)
    assert refused is not None
    assert refused.said.code is kind
    assert said in refused.said.text
    soon = SOON_S if node == {"egress_ready": None} else BUSY_RETRY_S
    assert refused.retry_after_s == (soon if kind is BUSY else 0.0)


WRONG_AT_ONCE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"min_trust_level": 2}, {}, "min_trust_level"),
    ({"image": "evil"}, {}, "ALLOWED_IMAGES"),
    ({"egress": True}, {"egress_allowed": False}, "EGRESS=off"),
    ({}, {"egress_ready": False}, "firewall"),
    ({"cpus": 9.0}, {}, "cpus"),
    ({"memory_bytes": 9999}, {}, "memory_bytes"),
    ({"disk_bytes": 9999}, {}, "disk_bytes"),
    ({"gpus": 9}, {}, "gpus"),
    ({}, PAUSED_NODE, "paused"),
    ({}, {"held": 3}, "holds 3"),
]


@pytest.mark.parametrize("first", range(len(WRONG_AT_ONCE)))
def test_what_never_fits_is_said_before_what_does_not_fit_now(first: int) -> None:
    spec: dict[str, Any] = {"egress": first <= 3}
    node: dict[str, Any] = {}
    for more_spec, more_node, _ in WRONG_AT_ONCE[first:]:
        spec, node = more_spec | spec, more_node | node
    refused = judge(spec | WRONG_AT_ONCE[first][0], node)
    assert refused is not None
    assert WRONG_AT_ONCE[first][2] in refused.said.text


def test_a_quota_of_another_trust_level_refuses_nothing_for_good() -> None:
    """The master has just said a level; the executor's figures are still those of the old one."""
    refused = judge({"memory_bytes": 1001}, {"trust_level": 2})
    assert refused is not None
    assert (refused.said.code, refused.retry_after_s) == (BUSY, 1.0)
    assert judge({"memory_bytes": 1000}, {"trust_level": 2}) is None


def test_cards_that_no_monitor_has_spoken_of_yet_are_not_refused_for_good() -> None:
    unknown = msgspec.structs.replace(CAPACITY, gpus=0, gpu_memory_bytes=(), gpus_known=False)
    refused = judge({"gpus": 1}, {"capacity": unknown})
    assert refused is not None
    assert (refused.said.code, refused.retry_after_s) == (BUSY, 1.0)
    assert judge({"gpu_memory_bytes": 99}, {"capacity": unknown}) is None, "of no card at all"


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        pytest.param({"gpus": 1}, BUSY, id="the one that is lost"),
        pytest.param({"gpus": 1, "gpu_memory_bytes": 99}, BUSY, id="it may be that large"),
        pytest.param({"gpus": 2}, TOO_LARGE, id="more than there would be"),
        pytest.param({"gpus": 1, "memory_bytes": 1001}, TOO_LARGE, id="too large but for it"),
        pytest.param({"memory_bytes": 1001}, TOO_LARGE, id="who needs none"),
        pytest.param({"gpu_memory_bytes": 99}, None, id="a size of none"),
    ],
)
def test_a_card_that_is_lost_refuses_nothing_for_good(
    spec: dict[str, Any], code: Refusal | None
) -> None:
    lost = msgspec.structs.replace(CAPACITY, gpus=0, gpu_memory_bytes=(), gpus_lost=1)
    refused = judge(spec, {"capacity": lost})
    assert (refused.said.code if refused else None) == code
    if code is BUSY:
        assert refused is not None
        assert refused.retry_after_s > 0
        assert "1 of this node's GPUs can't be used" in refused.said.text


@pytest.mark.parametrize("nothing", [{"memory_bytes": 0}, {"cpus": 0.0}])
def test_where_the_owner_keeps_all_no_task_is_taken_to_wait_for_ever(
    nothing: dict[str, Any],
) -> None:
    refused = judge({}, {"capacity": msgspec.structs.replace(CAPACITY, **nothing)})
    assert refused is not None
    assert refused.said.code is TOO_LARGE


def test_a_full_disk_refuses_nothing_for_good() -> None:
    full = msgspec.structs.replace(CAPACITY, disk_bytes=0, disk_full=True)
    refused = judge({"disk_bytes": 100}, {"capacity": full, **DEGRADED_NODE})
    assert refused is not None
    assert refused.said.code is BUSY
