"""What the master decides, as tables."""

import pytest

from procs.master.core import (
    IGNORED,
    MOVES,
    AttemptPhase,
    Demand,
    Event,
    Hopeless,
    IllegalMove,
    Node,
    Offer,
    Waiting,
    loss_event,
    move,
    place,
    resend_delay_s,
    result_event,
    why_waiting,
)

GIB = 2**30
ILLEGAL = {
    (AttemptPhase.WAITING, Event.FINISHED),
    (AttemptPhase.WAITING, Event.INTERRUPTED),
    (AttemptPhase.OFFERED, Event.PLACED),
    (AttemptPhase.HELD, Event.PLACED),
}


def waiting(task_id: str = "t", **more: object) -> Waiting:
    fields: dict[str, object] = {
        "attempt": 1,
        "priority": 0,
        "submitted_unix_s": 1.0,
        "demand": Demand(),
    }
    return Waiting(task_id=task_id, **fields | more)  # type: ignore[arg-type]


def node(node_id: str = "n", **more: object) -> Node:
    fields: dict[str, object] = {
        "ready": True,
        "trust_level": 3,
        "cpus": 4.0,
        "memory_bytes": 8 * GIB,
        "disk_bytes": 100 * GIB,
    }
    return Node(node_id=node_id, **fields | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", AttemptPhase)
@pytest.mark.parametrize("event", Event)
def test_every_pair_is_a_move_or_no_news_or_illegal(phase: AttemptPhase, event: Event) -> None:
    pair = (phase, event)
    assert [pair in MOVES, pair in IGNORED, pair in ILLEGAL].count(True) == 1
    if pair in ILLEGAL:
        with pytest.raises(IllegalMove, match=f"{phase} cannot be {event}"):
            move(phase, event)
    else:
        assert move(phase, event) == MOVES.get(pair)


@pytest.mark.parametrize(
    ("worth_another", "attempt", "cancel_wanted", "event"),
    [
        pytest.param(True, 2, False, Event.INTERRUPTED, id="the node's fault"),
        pytest.param(True, 3, False, Event.FINISHED, id="the last attempt"),
        pytest.param(True, 1, True, Event.FINISHED, id="not wanted any more"),
        pytest.param(False, 1, False, Event.FINISHED, id="the task's own end"),
    ],
)
def test_result_event(worth_another: bool, attempt: int, cancel_wanted: bool, event: Event) -> None:
    assert result_event(worth_another, attempt, cancel_wanted) is event


def test_a_lost_task_that_is_to_be_cancelled_has_ended() -> None:
    assert loss_event(cancel_wanted=True) is Event.CANCELLED
    assert loss_event(cancel_wanted=False) is Event.LOST


def test_resends_slow_down_to_ten_seconds() -> None:
    assert [resend_delay_s(n) for n in (1, 2, 3, 4, 5, 50)] == [1, 2, 4, 8, 10, 10]


def test_higher_priority_goes_first_then_the_older() -> None:
    tasks = [
        waiting("young", submitted_unix_s=3.0),
        waiting("old", submitted_unix_s=2.0),
        waiting("urgent", submitted_unix_s=9.0, priority=1),
    ]
    offers, _ = place(tasks, [node()])
    assert [o.task_id for o in offers] == ["urgent", "old", "young"]


HALF = Demand(cpus=2.0)


@pytest.mark.parametrize(
    ("demand", "only", "placed"),
    [
        pytest.param(Demand(), node(), True, id="asks for nothing"),
        pytest.param(Demand(cpus=99), node(), True, id="too large: an idle node says why not"),
        pytest.param(Demand(), node(ready=False), False, id="not ready"),
        pytest.param(Demand(cpus=2), node(given=(HALF,)), True, id="the second half"),
        pytest.param(Demand(cpus=2.5), node(given=(HALF,)), False, id="no CPU left"),
        pytest.param(
            Demand(cpus=2), node(given=(HALF,), trust_level=2), False, id="over its trust's share"
        ),
        pytest.param(Demand(memory_bytes=9 * GIB), node(given=(HALF,)), False, id="no memory left"),
        pytest.param(Demand(gpus=1), node(given=(HALF,)), False, id="no GPU"),
        pytest.param(
            Demand(gpus=1, gpu_memory_bytes=2),
            node(given=(HALF,), gpu_memory_bytes=(1, 3)),
            True,
            id="one of its GPUs is large enough",
        ),
        pytest.param(
            Demand(gpus=2, gpu_memory_bytes=2),
            node(given=(HALF,), gpu_memory_bytes=(1, 3)),
            False,
            id="one of two GPUs is too small",
        ),
        pytest.param(Demand(min_trust_level=3), node(), True, id="trusted enough"),
        pytest.param(
            Demand(min_trust_level=3), node(trust_level=2), False, id="not trusted enough"
        ),
        pytest.param(Demand(labels={"a": "1"}), node(), False, id="lacks a label"),
        pytest.param(
            Demand(labels={"a": "1"}), node(labels={"a": "1", "b": ""}), True, id="has the label"
        ),
        pytest.param(Demand(), node(given=(Demand(),) * 24), False, id="holds as many as it may"),
        pytest.param(Demand(), node(given=(Demand(),) * 23), True, id="may hold one more"),
    ],
)
def test_a_node_takes_what_fits(demand: Demand, only: Node, placed: bool) -> None:
    offers, hopeless = place([waiting(demand=demand)], [only])
    assert offers == ([Offer("t", 1, "n")] if placed else [])
    assert hopeless == []


def test_the_least_crowded_node_is_chosen_and_a_plan_counts_itself() -> None:
    nodes = [node("a", given=(Demand(),)), node("b")]
    offers, _ = place([waiting("1"), waiting("2"), waiting("3")], nodes)
    assert [(o.task_id, o.node_id) for o in offers] == [("1", "b"), ("2", "a"), ("3", "b")]


def test_another_attempt_goes_elsewhere_if_it_can() -> None:
    again = waiting(attempt=2, failed_on=frozenset({"a"}))
    offers, _ = place([again], [node("a"), node("b", given=(Demand(),))])
    assert [o.node_id for o in offers] == ["b"]
    offers, _ = place([again], [node("a")])
    assert [o.node_id for o in offers] == ["a"]


def test_a_task_that_every_node_refused_is_hopeless() -> None:
    task = waiting(refused_by={"a": "TOO_LARGE: no", "b": "TOO_LARGE: no"})
    nodes = [node("a"), node("b")]
    assert place([task], nodes) == ([], [Hopeless("t", 1, "TOO_LARGE: no")])
    offers, hopeless = place([task], [*nodes, node("c")])
    assert ([o.node_id for o in offers], hopeless) == (["c"], [])


def test_a_task_that_nobody_refused_waits_for_the_first_node() -> None:
    assert place([waiting()], []) == ([], [])


@pytest.mark.parametrize(
    ("demand", "nodes", "why"),
    [
        pytest.param(Demand(), [], "no node has joined yet", id="none"),
        pytest.param(
            Demand(min_trust_level=4), [node()], "no node is trusted at level 4", id="trust"
        ),
        pytest.param(
            Demand(labels={"a": "1"}),
            [node()],
            "no node carries the labels {'a': '1'}",
            id="label",
        ),
        pytest.param(Demand(), [node(ready=False)], "no node takes tasks now", id="paused"),
        pytest.param(Demand(), [node()], "the nodes are full", id="full"),
    ],
)
def test_why_a_task_waits(demand: Demand, nodes: list[Node], why: str) -> None:
    assert why_waiting(demand, nodes) == why
