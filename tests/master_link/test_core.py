"""Decisions of master_link, one by one."""

from itertools import groupby

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.master_link import core
from procs.master_link.core import (
    Again,
    AllTold,
    Attempt,
    Decision,
    Invalid,
    NotYet,
    Same,
    Stage,
    Status,
    Take,
    heartbeat_s,
)
from shared.messages import (
    Capacity,
    Engine,
    HeldTask,
    NodePhase,
    OwnerWant,
    PhaseAt,
    ProcessInfo,
    ProcessState,
    StopReason,
    TaskPhase,
    TaskState,
)
from shared.taskdir import TaskKey

NOW_S = 1_000_000.0


def attempt(number: int = 2, stage: Stage = Stage.HELD, **more: object) -> Attempt:
    return Attempt(TaskKey("t", number), "d", stage=stage, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "decision"),
    [
        pytest.param([], Take(), id="new"),
        pytest.param([attempt()], Same(), id="held"),
        pytest.param([attempt(1)], Take((TaskKey("t", 1),)), id="newer than one held"),
        pytest.param([attempt(1, Stage.KEPT)], Take(), id="newer than one delivered"),
        pytest.param(
            [attempt(stage=Stage.KEPT, delivered_unix_s=NOW_S - 1)], Again(), id="delivered"
        ),
        pytest.param([attempt(stage=Stage.KEPT, redeliver=True)], Same(), id="on its way again"),
        pytest.param(
            [attempt(stage=Stage.DELIVERED, delivered_unix_s=NOW_S)], Again(), id="just delivered"
        ),
    ],
)
def test_an_assignment(known: list[Attempt], decision: Decision) -> None:
    assert core.decide(TaskKey("t", 2), "d", known, NOW_S) == decision


@pytest.mark.parametrize(
    ("known", "words"),
    [
        pytest.param(attempt(3), "older than 3", id="older"),
        pytest.param(attempt(stage=Stage.GONE), "delivered before", id="gone"),
        pytest.param(
            attempt(stage=Stage.KEPT, delivered_unix_s=NOW_S - core.DAY_S),
            "delivered before",
            id="a day ago",
        ),
        pytest.param(attempt(stop=StopReason.FORGOTTEN), "forget", id="forgotten"),
        pytest.param(Attempt(TaskKey("t", 2), "e"), "other content", id="other content"),
    ],
)
def test_an_assignment_that_is_invalid(known: Attempt, words: str) -> None:
    decision = core.decide(TaskKey("t", 2), "d", [known], NOW_S)
    assert isinstance(decision, Invalid)
    assert words in decision.said.text


def held(phase: TaskPhase, *before: TaskPhase, detail: str = "") -> HeldTask:
    phases = tuple(PhaseAt(phase=p, at_unix_s=float(n)) for n, p in enumerate((*before, phase)))
    return HeldTask(
        task_id="t", attempt=2, phase=phase, directory="t.2", phases=phases, detail=detail
    )


A, P, R, C, S = (
    TaskPhase.ACCEPTED, TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING,
    TaskPhase.SUCCEEDED,
)  # fmt: skip


@pytest.mark.parametrize(
    ("task", "sent", "step"),
    [
        pytest.param(None, None, NotYet(), id="no news"),
        pytest.param(held(A), None, NotYet(), id="accepted"),
        pytest.param(held(A, detail="waits"), None, Status(A, "waits", 0.0), id="waits"),
        pytest.param(held(P, A, detail="1%"), None, Status(P, "1%", 1.0), id="accepted skipped"),
        pytest.param(held(S, A, P, R, C), None, Status(P, "", 1.0), id="from the first"),
        pytest.param(held(S, A, P, R, C), P, Status(R, "", 2.0), id="then the next"),
        pytest.param(held(S, A, P, R, C), C, AllTold(), id="all told"),
        pytest.param(held(S, A), None, AllTold(), id="ended before it began"),
    ],
)
def test_statuses_are_told_once_and_in_order(
    task: HeldTask | None, sent: TaskPhase | None, step: object
) -> None:
    assert core.next_status(task, sent, "", 100.0) == step


def test_progress_waits_for_its_second_and_the_newest_wins() -> None:
    task = held(P, A, detail="2%")
    assert core.next_status(task, P, "1%", 0.25) == NotYet(0.75)
    assert core.next_status(task, P, "1%", 1.0) == Status(P, "2%", 0.0)
    assert core.next_status(task, P, "2%", 9.0) == NotYet()


def test_what_is_wanted_names_each_reason_to_end() -> None:
    attempts = [
        attempt(1, stop=StopReason.CANCELLED, stop_detail="why"),
        attempt(2),
        attempt(3),
        attempt(4, Stage.DELIVERED),
        attempt(5, stop=StopReason.FORGOTTEN),
    ]
    final = {TaskKey("t", 5): held(TaskPhase.CANCELLED)}
    wanted = core.wanted(attempts, final, ["t.3"])
    assert [(w.attempt, w.stop) for w in wanted] == [
        (1, StopReason.CANCELLED), (2, None), (3, StopReason.OWNER),
    ]  # fmt: skip
    assert wanted[0].stop_detail == "why"


def test_the_executor_has_let_go_only_in_news_newer_than_our_want() -> None:
    one = attempt(dropped_at_s=10.0)
    assert not core.is_released(one, TaskState(at_s=9.0))
    assert core.is_released(one, TaskState(at_s=11.0))
    assert not core.is_released(one, TaskState(at_s=11.0, tasks=(held(S),)))
    assert not core.is_released(attempt(), TaskState(at_s=11.0))


WELL = TaskState(at_s=0.0, engine=Engine(available=True))


@pytest.mark.parametrize(
    ("owner", "desired", "state", "down", "phase"),
    [
        pytest.param(NodePhase.READY, NodePhase.READY, WELL, (), "READY", id="well"),
        pytest.param(NodePhase.READY, NodePhase.READY, None, (), "READY", id="no news"),
        pytest.param(NodePhase.READY, NodePhase.READY, WELL, ("vpn",), "DEGRADED", id="down"),
        pytest.param(
            NodePhase.READY, NodePhase.READY, TaskState(at_s=0.0), (), "DEGRADED", id="engine"
        ),
        pytest.param(
            NodePhase.READY,
            NodePhase.READY,
            TaskState(at_s=0, engine=WELL.engine, capacity=Capacity(disk_full=True)),
            (),
            "DEGRADED",
            id="disk",
        ),
        pytest.param(
            NodePhase.READY, NodePhase.DRAINING, WELL, ("vpn",), "DRAINING", id="the master drains"
        ),
        pytest.param(
            NodePhase.PAUSED, NodePhase.READY, WELL, (), "PAUSED", id="the owner's is not lifted"
        ),
        pytest.param(
            NodePhase.DRAINING, NodePhase.PAUSED, WELL, (), "PAUSED", id="the higher one wins"
        ),
    ],
)
def test_the_nodes_state_is_the_highest_claim(
    owner: NodePhase,
    desired: NodePhase,
    state: TaskState | None,
    down: tuple[str, ...],
    phase: str,
) -> None:
    wish = OwnerWant(at_s=0.0, wish=owner)
    assert core.node_state(wish, desired, state, down)[0] is NodePhase[phase]


def test_a_component_is_down_after_fifteen_seconds_and_silence_changes_nothing() -> None:
    def news(state: str) -> ProcessState:
        return ProcessState(at_s=0.0, processes=(ProcessInfo(name="vpn", state=state),))

    components = core.Components()
    assert components.down(news("BACKOFF"), 0.0) == ()
    assert components.down(news("EXITED"), 14.9) == ()
    assert components.down(None, 15.0) == ("vpn",)
    assert components.down(news("RUNNING"), 16.0) == ()
    assert components.down(news("EXITED"), 20.0) == ()


@pytest.mark.parametrize(
    ("asked_s", "is_s"), [(0.0, 10.0), (-5.0, 10.0), (1e-9, 0.1), (20.0, 20.0), (3e11, 300.0)]
)
def test_the_heartbeats_interval_is_one_that_makes_sense(asked_s: float, is_s: float) -> None:
    assert heartbeat_s(asked_s) == is_s


def test_retries_grow_to_half_a_minute() -> None:
    assert core.retry_s(0, 0.0) == pytest.approx(0.1)
    assert core.retry_s(3, 1.0) == pytest.approx(1.6)
    assert core.retry_s(50, 1.0) == pytest.approx(30.0)


# ------------------------------------------------------------------ statuses, whatever is lost


class Telling:
    """One attempt's phases on the way to a master that may or may not hear; and what a start of
    the process leaves of it: what was told is on disk before the next is (courier.py)."""

    def __init__(self) -> None:
        self.task = HeldTask(
            task_id="t",
            attempt=1,
            phase=TaskPhase.ACCEPTED,
            directory="t.1",
            phases=(PhaseAt(phase=TaskPhase.ACCEPTED, at_unix_s=0.0),),
        )
        self.sent: TaskPhase | None = None
        self.on_disk: TaskPhase | None = None
        self.detail = ""
        self.heard: list[core.Status] = []

    def move(self, detail: str) -> None:
        if not self.task.phase.is_final:
            phase = list(TaskPhase)[list(TaskPhase).index(self.task.phase) + 1]
            entered = PhaseAt(phase=phase, at_unix_s=len(self.task.phases))
            phases = (*self.task.phases, entered)
            self.task = msgspec.structs.replace(
                self.task, phase=phase, phases=phases, detail=detail
            )

    def say(self, detail: str) -> None:
        self.task = msgspec.structs.replace(self.task, detail=detail)

    def tell(self, outcome: str) -> None:
        step = core.next_status(self.task, self.sent, self.detail, core.PROGRESS_EVERY_S)
        if not isinstance(step, core.Status):
            return
        self.on_disk = self.sent
        if outcome != "unheard":
            self.heard.append(step)
        if outcome == "answered":
            self.sent, self.detail = step.phase, step.detail
        else:
            self.detail = ""

    def restart(self, saved: str) -> None:
        self.sent, self.detail = self.sent if saved else self.on_disk, ""


DETAILS = st.sampled_from(["", "pulling 1%", "pulling 2%"])
TELLING = st.one_of(
    st.tuples(st.just("move"), DETAILS),
    st.tuples(st.just("say"), DETAILS),
    st.tuples(st.just("tell"), st.sampled_from(["answered", "unanswered", "unheard"])),
    st.tuples(st.just("restart"), st.sampled_from(["", "saved"])),
)


@given(st.lists(TELLING, max_size=60))
def test_phases_are_told_once_and_in_order_whatever_is_lost(events: list[tuple[str, str]]) -> None:
    telling = Telling()
    for name, value in events:
        getattr(telling, name)(value)
    while not telling.task.phase.is_final:
        telling.move("")
    while core.next_status(telling.task, telling.sent, "", 9.0) != core.AllTold():
        telling.tell("answered")
    told = [name for name, _ in groupby(status.phase for status in telling.heard)]
    work = [TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING]
    assert told in (work, [TaskPhase.ACCEPTED, *work])
