"""How the machine is shared out."""

import pytest

from procs.executor.quota import (
    CPU_OVERCOMMIT,
    DISK_FLOOR_BYTES,
    MOST_IN_PREPARATION,
    WORKER_BYTES,
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

MACHINE = Machine(cpus=8, memory_bytes=16 * GIB, disk_free_bytes=100 * GIB + DISK_FLOOR_BYTES)
NOTHING = Reserved(0.0, 0)  # but for the worker itself
MOST = Capacity(cpus=4.0, memory_bytes=4 * GIB, disk_bytes=10 * GIB, max_held=100)


@pytest.mark.parametrize(
    ("level", "share"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (9, 1.0), (-1, 0.25)]
)
def test_a_trust_level_gives_its_share_of_everything(level: int, share: float) -> None:
    found = capacity(MACHINE, NOTHING, level, 7)
    assert found.cpus == 8 * share
    assert found.memory_bytes == (16 * GIB - WORKER_BYTES) * share
    assert found.disk_bytes == 100 * GIB * share
    assert (found.max_held, found.disk_full) == (7, False)


@pytest.mark.parametrize(
    ("reserved", "cpus", "memory"),
    [
        pytest.param(Reserved(), 7.2, int(16 * GIB) - int(1.6 * GIB), id="a tenth by default"),
        pytest.param(Reserved(2.0, 4 * GIB), 6.0, 12 * GIB, id="what the owner says"),
        pytest.param(Reserved(99.0, 99 * GIB), 0.0, 0, id="everything"),
        pytest.param(Reserved(0.0, 0), 8.0, 16 * GIB - WORKER_BYTES, id="nothing"),
    ],
)
def test_the_owner_keeps_a_part(reserved: Reserved, cpus: float, memory: int) -> None:
    found = capacity(MACHINE, reserved, 3, 1)
    assert found.cpus == pytest.approx(cpus)
    assert found.memory_bytes == pytest.approx(memory, abs=2)


def test_a_small_machine_keeps_half_a_gibibyte() -> None:
    found = capacity(Machine(1, GIB, GIB), Reserved(), 3, 1)
    assert found.memory_bytes == 512 * MIB


def test_a_full_disk_is_said() -> None:
    assert capacity(Machine(1, GIB, DISK_FLOOR_BYTES), Reserved(), 3, 1).disk_full


def spec(
    name: str, *, memory: int = GIB, priority: int = 0, age: float = 0.0, cpus: float = 0.5
) -> Spec:
    return Spec(
        task_id=name, attempt=1, image="i", memory_bytes=memory, cpus=cpus, disk_bytes=MIB,
        priority=priority, accepted_unix_s=age,
    )  # fmt: skip


def names(chosen: list[tuple[Spec, Grant]]) -> list[str]:
    return [s.task_id for s, _ in chosen]


def test_unset_wishes_become_the_nodes_defaults_within_its_quota() -> None:
    bare = Spec(task_id="t", attempt=1, image="i")
    small = Capacity(cpus=0.5, memory_bytes=100 * MIB, disk_bytes=50 * MIB)
    assert grant(bare, MOST) == Grant(1.0, 512 * MIB, GIB, 256)
    assert grant(bare, small) == Grant(0.5, 100 * MIB, 50 * MIB, 256)


def test_priority_then_age() -> None:
    waiting = [spec("old", age=1), spec("new", age=2), spec("urgent", age=3, priority=5)]
    assert names(choose(waiting, [], 0, MOST)) == ["urgent", "old", "new"]


def test_memory_is_never_given_twice() -> None:
    held = [grant(spec("a", memory=3 * GIB), MOST)]
    assert names(choose([spec("b"), spec("c")], held, 0, MOST)) == ["b"]


def test_a_large_task_is_not_starved_by_small_ones() -> None:
    held = [grant(spec("a", memory=3 * GIB), MOST)]
    waiting = [spec("large", memory=2 * GIB, age=1), spec("small", memory=MIB, age=2)]
    assert choose(waiting, held, 0, MOST) == []


def test_cpu_is_shared_out_beyond_what_there_is_up_to_a_limit() -> None:
    waiting = [spec(f"t{n:02}", cpus=4.0, memory=MIB, age=n) for n in range(8)]
    assert len(choose(waiting, [], 0, MOST)) == int(CPU_OVERCOMMIT)


def test_only_so_many_are_prepared_at_once() -> None:
    waiting = [spec(f"t{n:02}", cpus=0.1, memory=MIB, age=n) for n in range(20)]
    assert len(choose(waiting, [], 3, MOST)) == MOST_IN_PREPARATION - 3


def test_one_that_an_empty_node_could_not_take_keeps_nobody_waiting() -> None:
    """As when the trust level has sunk since it was accepted."""
    waiting = [spec("large", memory=5 * GIB, age=1), spec("small", age=2)]
    assert names(choose(waiting, [], 0, MOST)) == ["small"]
    said = shortage(waiting[0], grant(waiting[0], MOST), [], MOST)
    assert said == f"it needs {5 * GIB} bytes of memory, tasks on this node may have {4 * GIB} now"
    assert shortage(waiting[1], grant(waiting[1], MOST), [], MOST) == ""


def test_what_running_tasks_may_write_comes_back() -> None:
    held = Grant(1.0, MIB, 8 * GIB, 1)
    wish = Grant(1.0, MIB, 15 * GIB, 1)
    assert shortage(spec("t"), wish, [], MOST) != ""
    assert shortage(spec("t"), wish, [held], MOST) == ""


def test_nobody_is_given_nothing() -> None:
    nothing = Capacity()
    wish = grant(Spec(task_id="t", attempt=1, image="i"), nothing)
    assert min(wish.cpus, wish.memory_bytes, wish.disk_bytes, wish.processes) > 0
    assert shortage(spec("t"), wish, [], nothing) != ""
