"""Whatever comes, ends and changes: nothing is given twice, and nobody waits for ever."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from procs.executor.gpus import UNKNOWN, Card
from procs.executor.quota import (
    CPU_OVERCOMMIT,
    DISK_FLOOR_BYTES,
    Grant,
    Machine,
    Reserved,
    capacity,
    choose,
    grant,
    shortage,
)
from shared.messages import Capacity
from shared.taskdir import GIB, MIB, Spec

CARDS = tuple(Card(f"GPU-{n}", size * GIB) for n, size in enumerate((16, 16, 24, 80)))
WISHES = st.fixed_dictionaries({
    "cpus": st.sampled_from((0.0, 0.1, 1.0, 5.0)),
    "memory_bytes": st.one_of(st.sampled_from((0, MIB, GIB, 2 * GIB)), st.integers(1, 6 * GIB)),
    "disk_bytes": st.one_of(st.sampled_from((0, GIB, 4 * GIB)), st.integers(1, 12 * GIB)),
    "priority": st.integers(-1, 1),
    "gpus": st.sampled_from((0, 0, 1, 2, 3)),
    "gpu_memory_bytes": st.sampled_from((0, 0, 24 * GIB, 80 * GIB)),
})  # fmt: skip
LEVELS = st.integers(0, 3)


class Node(RuleBasedStateMachine):
    """The executor's use of quota.py, with a disk that fills as tasks write."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Spec] = []
        self.active: dict[str, Grant] = {}
        self.specs: dict[str, Spec] = {}
        self.written: dict[str, int] = {}
        self.healthy = self.spoken = CARDS
        self.count = 0

    @initialize(
        level=LEVELS,
        memory=st.sampled_from((GIB // 4, 4 * GIB, 16 * GIB)),
        disk=st.sampled_from((GIB // 4, 10 * GIB, 20 * GIB)),
    )
    def begin(self, level: int, memory: int, disk: int) -> None:
        self.level, self.memory, self.disk = level, memory, disk

    def most(self) -> Capacity:
        written = sum(self.written.values())
        free = max(self.disk - written, 0)
        machine = Machine(4, self.memory, free, min(written, self.disk), self.healthy)
        return capacity(machine, Reserved(), self.level, 100)

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=4))
    def arrive(self, wishes: list[dict[str, Any]]) -> None:
        for wish in wishes:
            self.count += 1
            name = f"t{self.count}"
            spec = Spec(task_id=name, attempt=1, image="i", accepted_unix_s=self.count, **wish)
            self.waiting.append(spec)
        self.give()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.active:
            name = data.draw(st.sampled_from(sorted(self.active)))
            del self.active[name]
            self.written.pop(name, None)
            self.give()

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        if self.active:
            name = data.draw(st.sampled_from(sorted(self.active)))
            limit = self.active[name].disk_bytes
            least = self.written.get(name, 0)
            self.written[name] = data.draw(st.one_of(st.just(limit), st.integers(least, limit)))
            self.give()

    @rule(level=LEVELS)
    def trust(self, level: int) -> None:
        self.level = level
        self.give()

    @rule(healthy=st.sets(st.sampled_from(CARDS)), spoken=st.sets(st.sampled_from(CARDS)))
    def monitors(self, healthy: set[Card], spoken: set[Card]) -> None:
        self.healthy = tuple(sorted(healthy, key=lambda c: c.uuid))
        self.spoken = tuple(card for card in self.healthy if card in spoken)
        self.give()

    @rule(data=st.data())
    def restart_with_a_grant_that_nobody_can_read(self, data: st.DataObject) -> None:
        if self.active:
            name = data.draw(st.sampled_from(sorted(self.active)))
            spec = self.specs[name]
            gpus = (UNKNOWN,) if spec.gpus else ()
            self.active[name] = replace(self.active[name], gpus=gpus)

    def give(self) -> None:
        most, before = self.most(), list(self.active.values())
        chosen = choose(self.waiting, before, 0, most, self.spoken)
        for spec, granted in chosen:
            self.waiting.remove(spec)
            self.active[spec.task_id], self.specs[spec.task_id] = granted, spec
        if chosen:
            self.check(most)
        for spec, granted in chosen:
            self.check_cards(spec, granted, before)
        taken = [uuid for _, one in chosen for uuid in one.gpus]
        held = {uuid for one in self.active.values() for uuid in one.gpus} & {
            card.uuid for card in self.spoken
        }
        assert not taken or len(held) <= most.gpus

    def check(self, most: Capacity) -> None:
        """After something was given: all that is given is there."""
        given_out = self.active.values()
        assert sum(one.memory_bytes for one in given_out) <= most.memory_bytes <= self.memory
        assert sum(one.cpus for one in given_out) <= most.cpus * CPU_OVERCOMMIT + 1e-6
        still = sum(one.disk_bytes for one in given_out) - sum(self.written.values())
        assert still <= self.disk - sum(self.written.values()) - DISK_FLOOR_BYTES

    def check_cards(self, spec: Spec, granted: Grant, before: list[Grant]) -> None:
        assert len(granted.gpus) == spec.gpus
        cards = {card.uuid: card for card in self.spoken}
        assert all(cards[u].memory_bytes >= spec.gpu_memory_bytes for u in granted.gpus)
        assert not spec.gpus or all(UNKNOWN not in one.gpus for one in before)

    @invariant()
    def no_card_is_given_twice(self) -> None:
        given_out = [u for one in self.active.values() for u in one.gpus if u != UNKNOWN]
        assert len(given_out) == len(set(given_out))


Node.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestNode = Node.TestCase

COMMON = st.fixed_dictionaries({
    "cpus": st.just(0.1), "memory_bytes": st.sampled_from((MIB, GIB)), "priority": st.just(0),
    "disk_bytes": st.sampled_from((MIB, GIB, 4 * GIB)), "gpus": st.sampled_from((0, 1)),
    "gpu_memory_bytes": st.just(0),
})  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(COMMON, min_size=3, max_size=6), st.lists(st.floats(0, 1)), LEVELS, LEVELS)
def test_what_is_given_to_tasks_that_write_is_there(
    wishes: list[dict[str, Any]], written: list[float], before: int, after: int
) -> None:
    """The same rules, with wishes that fit well, so that the node is full in most cases."""
    node = Node()
    node.begin(before, 4 * GIB, 10 * GIB)
    node.arrive(wishes[:3])
    for name, part in zip(list(node.active), written, strict=False):
        node.written[name] = int(node.active[name].disk_bytes * part)
    node.level = after
    node.arrive([*wishes[3:], *wishes])
    node.no_card_is_given_twice()


# ------------------------------------------------------------------ nobody waits for ever

SMALL = st.builds(
    lambda memory, disk, cpus: (memory, disk, cpus),
    st.integers(MIB, 2 * GIB), st.integers(MIB, 5 * GIB), st.floats(0.1, 4.0),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(SMALL, st.lists(SMALL, min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 4))
def test_a_large_task_begins_however_many_small_ones_come(
    large: tuple[int, int, float], small: list[tuple[int, int, float]], lives: int, gpus: int
) -> None:
    """Each small one ends after `lives` rounds, and new ones come in each round."""
    most = Capacity(
        cpus=4.0, memory_bytes=4 * GIB, disk_bytes=10 * GIB, gpus=4,
        gpu_memory_bytes=tuple(sorted((c.memory_bytes for c in CARDS), reverse=True)),
    )  # fmt: skip
    wanted = Spec(
        task_id="large", attempt=1, image="i", memory_bytes=large[0] + 2 * GIB, gpus=gpus,
        disk_bytes=large[1] + 5 * GIB, cpus=large[2], accepted_unix_s=0.5,
    )  # fmt: skip
    waiting, active = [wanted], {"zero": (grant(wanted, most), lives)}
    for number in range(lives + 2):
        for index, (memory, disk, cpus) in enumerate(small):
            name = f"s{number}-{index}"
            waiting.append(Spec(
                task_id=name, attempt=1, image="i", memory_bytes=memory, disk_bytes=disk,
                cpus=cpus, gpus=index % 2, accepted_unix_s=1.0 + number,
            ))  # fmt: skip
        for spec, granted in choose(waiting, [g for g, _ in active.values()], 0, most, CARDS):
            waiting.remove(spec)
            active[spec.task_id] = granted, number + lives
        active = {n: (g, until) for n, (g, until) in active.items() if until > number}
        if "large" in active or wanted not in waiting:
            return
    raise AssertionError(f"{wanted} still waits")


def test_who_waits_for_a_gpu_keeps_no_other_from_what_is_left() -> None:
    most = Capacity(
        cpus=4.0, memory_bytes=4 * GIB, disk_bytes=10 * GIB, gpus=1, gpu_memory_bytes=(GIB,)
    )
    card = Card("GPU-0", GIB)
    held = Grant(0.1, MIB, MIB, 1, gpus=("GPU-0",))
    waits = Spec(task_id="a", attempt=1, image="i", memory_bytes=3 * GIB, gpus=1, cpus=1.0)
    fits = Spec(task_id="b", attempt=1, image="i", memory_bytes=512 * MIB, cpus=1.0)
    large = Spec(task_id="c", attempt=1, image="i", memory_bytes=2 * GIB, cpus=1.0)
    assert [s.task_id for s, _ in choose([waits, fits, large], [held], 0, most, [card])] == ["b"]
    assert [s.task_id for s, _ in choose([waits, fits], [], 0, most, [card])] == ["a", "b"]


def test_a_gpu_that_one_waits_for_goes_to_no_other() -> None:
    most = Capacity(
        cpus=4.0, memory_bytes=4 * GIB, disk_bytes=10 * GIB, gpus=2, gpu_memory_bytes=(GIB, GIB)
    )
    pair = [Card("GPU-0", GIB), Card("GPU-1", GIB)]
    held = Grant(0.1, MIB, MIB, 1, gpus=("GPU-0",))
    both = Spec(task_id="a", attempt=1, image="i", memory_bytes=MIB, gpus=2, cpus=0.1)
    one = Spec(task_id="b", attempt=1, image="i", memory_bytes=MIB, gpus=1, cpus=0.1)
    assert choose([both, one], [held], 0, most, pair) == []
    assert [g.gpus for _, g in choose([both, one], [], 0, most, pair)] == [("GPU-0", "GPU-1")]


def test_a_task_that_needs_more_cards_than_there_are_says_so() -> None:
    spec = Spec(task_id="a", attempt=1, image="i", gpus=2, gpu_memory_bytes=GIB)
    most = with_gpus(1, (2 * GIB,))
    assert "2 GPUs" in shortage(spec, grant(spec, most), [], most)
    most = with_gpus(2, (2 * GIB, MIB))
    assert f"have {MIB} now" in shortage(spec, grant(spec, most), [], most)
    most = with_gpus(2, (2 * GIB, GIB))
    assert shortage(spec, grant(spec, most), [], most) == ""


def with_gpus(gpus: int, sizes: tuple[int, ...]) -> Capacity:
    return Capacity(
        cpus=4.0, memory_bytes=4 * GIB, disk_bytes=10 * GIB, gpus=gpus, gpu_memory_bytes=sizes
    )
