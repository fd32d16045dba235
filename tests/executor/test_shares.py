"""The weight of all tasks against the owner's programs: the policy, its files, its effect."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor import cgroup
from procs.executor.parent import TasksGroup, most_processes
from procs.executor.shares import (
    NORMAL_PCT,
    OWNER_QUIET_PCT,
    Weight,
    next_weight,
    owner_cpu_pct,
    target_pct,
)
from shared.bus import Tap
from shared.messages import HostLoad, TaskState
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

CPUS = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("owner_pct", "pressure_pct", "weight_pct"),
    [
        pytest.param(0.0, 90.0, 100.0, id="only tasks work"),
        pytest.param(10.0, None, 100.0, id="the owner hardly works"),
        pytest.param(30.0, None, 50.5, id="half way"),
        pytest.param(50.0, None, 1.0, id="half of the machine"),
        pytest.param(100.0, 90.0, 1.0, id="all of it"),
        pytest.param(100.0, 4.9, 100.0, id="nobody waits for CPU"),
        pytest.param(100.0, 5.0, 1.0, id="somebody does"),
    ],
)
def test_what_the_weight_should_be(
    owner_pct: float, pressure_pct: float | None, weight_pct: float
) -> None:
    assert target_pct(owner_pct, pressure_pct) == pytest.approx(weight_pct)


@pytest.mark.parametrize(
    ("host_pct", "tasks_pct", "owner_pct"), [(80.0, 30.0, 50.0), (20.0, 25.0, 0.0)]
)
def test_the_owner_has_what_the_tasks_have_not(
    host_pct: float, tasks_pct: float, owner_pct: float
) -> None:
    assert owner_cpu_pct(host_pct, tasks_pct) == owner_pct


@pytest.mark.parametrize(
    ("owner_pcts", "weights"),
    [
        pytest.param([0, 90], [100, 1], id="down at once"),
        pytest.param([90] + 9 * [0], 10 * [1], id="not up at once"),
        pytest.param([90] + 12 * [0], [1] + 10 * [1] + [2, 4], id="then step by step"),
        pytest.param([90] + 30 * [0], [*11 * [1], 2, 4, 8, 16, 32, 64, *14 * [100]], id="to all"),
        pytest.param([90] + 9 * [0] + [90] + 9 * [0], 20 * [1], id="a pause begins anew"),
        pytest.param([90, *11 * [0], 90], [*11 * [1], 2, 1], id="down again"),
    ],
)
def test_it_sinks_at_once_and_rises_late(owner_pcts: list[float], weights: list[float]) -> None:
    weight, seen = Weight(), []
    for second, owner_pct in enumerate(owner_pcts):
        weight = next_weight(weight, owner_pct, None, float(second))
        seen.append(weight.pct)
    assert seen == pytest.approx(weights)


# ------------------------------------------------------------------ its files


def tree(root: Path, *, is_v2: bool, place: str) -> Path:
    """Recorded files of the group of all tasks; the one with the weight."""
    if is_v2:
        (root / "cgroup.controllers").write_text("cpu memory\n")
    weight = root / place / "cpu.weight" if is_v2 else root / "cpu" / place / "cpu.shares"
    weight.parent.mkdir(parents=True, exist_ok=True)
    weight.write_text("100\n" if is_v2 else "1024\n")
    return weight


def busy(at_s: float, tasks_pct: float | None) -> HostLoad:
    """All of the machine is used, so much of it by tasks."""
    return HostLoad(at_s=at_s, cpu_pct=100.0, tasks_cpu_pct=tasks_pct)


@pytest.mark.parametrize("place", ["hivemind", "hivemind.slice"])
@pytest.mark.parametrize(("is_v2", "least", "normal"), [(True, "1", "100"), (False, "10", "1024")])
def test_the_weight_is_written_where_the_engine_made_the_group(
    tmp_path: Path, place: str, is_v2: bool, least: str, normal: str
) -> None:
    weight = tree(tmp_path, is_v2=is_v2, place=place)
    group = TasksGroup(tmp_path)
    for at_s, tasks_pct in ((1.0, 95.0), (2.0, None)):  # the owner has little, or who knows
        group.follow(busy(at_s, tasks_pct), is_used=True)
        assert (weight.read_text().strip(), group.pct) == (normal, 100.0)
    group.follow(busy(3.0, 30.0), is_used=True)
    assert weight.read_text().strip() == least
    assert group.pct == pytest.approx(1.0)
    for at_s in (4.0, 5.0, 20.0):
        group.follow(busy(at_s, None), is_used=True)
        group.follow(None, is_used=True)  # no news: as it is
        assert weight.read_text().strip() == least
    for at_s in (6.0, 19.0):  # no newer than what was followed: else it would rise
        group.follow(busy(at_s, 100.0), is_used=True)
    assert weight.read_text().strip() == least
    risen = []
    for second in range(21, 39):  # calm
        group.follow(busy(float(second), 95.0), is_used=True)
        risen.append(int(weight.read_text()))
    assert risen == sorted(risen)
    assert (risen[9], risen[-1]) == (int(least), int(normal))
    group.follow(busy(39.0, 30.0), is_used=True)
    assert weight.read_text().strip() == least
    group.follow(busy(40.0, 30.0), is_used=False)  # the last task has ended
    assert (weight.read_text().strip(), group.pct) == (normal, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("max", str(most_processes()), id="none"),
        pytest.param("4000000", str(most_processes()), id="too high"),
        pytest.param("7", "7", id="the owner's"),
    ],
)
@pytest.mark.parametrize("is_v2", [True, False], ids=["v2", "v1"])
def test_tasks_together_never_have_all_processes_of_the_machine(
    tmp_path: Path, is_v2: bool, before: str, after: str
) -> None:
    tree(tmp_path, is_v2=is_v2, place="hivemind.slice")
    limit = tmp_path / ("." if is_v2 else "pids") / "hivemind.slice" / "pids.max"
    limit.parent.mkdir(parents=True, exist_ok=True)
    limit.write_text(f"{before}\n")
    TasksGroup(tmp_path).follow(HostLoad(at_s=1.0), is_used=True)
    assert limit.read_text().strip() == after
    assert most_processes() <= int(Path("/proc/sys/kernel/pid_max").read_text()) / 2


def test_what_a_life_before_left_is_known(tmp_path: Path) -> None:
    tree(tmp_path, is_v2=True, place="hivemind").write_text("3\n")
    TasksGroup(tmp_path).follow(None, is_used=False)
    assert (tmp_path / "hivemind" / "cpu.weight").read_text().strip() == "100"


def test_a_weight_that_can_not_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = tree(tmp_path, is_v2=True, place="hivemind")
    weight.unlink()
    weight.mkdir()  # for root, too
    group = TasksGroup(tmp_path)
    for second in range(3):
        group.follow(busy(float(second), 0.0), is_used=True)
    assert len(caplog.records) == 1
    assert group.pct is None


def test_without_any_group_nothing_is_done(tmp_path: Path) -> None:
    group = TasksGroup(tmp_path)
    group.follow(busy(1.0, 0.0), is_used=True)
    assert group.pct is None
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------ for real

BUSY = (sys.executable, "-c", "while True: pass")
WINDOW_S = 3.0
MOST_BEATS = 5  # of host.load, one each second, until the weight is the least
PATIENCE_S = 20.0  # it has risen after 17 s, unless other programs keep the machine busy


class Machine:
    """What the monitor says of it, the weight that the policy makes of that, the one in force."""

    def __init__(self, home: Path) -> None:
        self._tap = Tap(home, ("host.load", "task.state"))
        self._policy = Weight()
        self.expected: list[float] = []  # after each host.load
        self.owner_pcts: list[float] = []
        self.tasks_pcts: list[float] = []
        self.seen: list[tuple[int, float]] = []  # (how many host.loads before, weight)

    def look(self) -> None:
        while heard := self._tap.next(0.0):
            message = heard[1]
            if isinstance(message, HostLoad) and message.tasks_cpu_pct is not None:
                self._follow(message, message.tasks_cpu_pct)
            elif isinstance(message, TaskState) and message.cpu_weight_pct is not None:
                self.seen.append((len(self.expected), message.cpu_weight_pct))

    def _follow(self, load: HostLoad, tasks_cpu_pct: float) -> None:
        self.tasks_pcts.append(tasks_cpu_pct)
        self.owner_pcts.append(owner_cpu_pct(load.cpu_pct, tasks_cpu_pct))
        self._policy = next_weight(
            self._policy, self.owner_pcts[-1], load.pressure_cpu_pct, load.at_s
        )
        self.expected.append(self._policy.pct)

    @property
    def weight_pct(self) -> float:
        return self.seen[-1][1] if self.seen else NORMAL_PCT

    def close(self) -> None:
        self._tap.close()


class Owner:
    """Programs that would use every core."""

    def __init__(self) -> None:
        self._processes = [subprocess.Popen(BUSY) for _ in range(CPUS)]

    def cpu_s(self) -> float:
        return sum(
            int(Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[11])
            for p in self._processes
        ) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def cpu_s_of(group: cgroup.Group) -> float:
    use = cgroup.use(group)
    assert use is not None
    return use.cpu_ns / 1e9


def part_of(owner: Owner, executor: ExecutorAlone, group: cgroup.Group) -> float:
    """The owner's, of what its programs and the task got over a window; what other programs of the
    machine have is taken from both."""
    own_s, tasks_s, end_s = owner.cpu_s(), cpu_s_of(group), time.monotonic() + WINDOW_S
    executor.wait(lambda: time.monotonic() >= end_s, "the end of the window")
    own_s, tasks_s = owner.cpu_s() - own_s, cpu_s_of(group) - tasks_s
    return own_s / (own_s + tasks_s)


@pytest.fixture
def busy_task(engine: PrivateEngine) -> Iterator[tuple[ExecutorAlone, Machine, cgroup.Group]]:
    """Beside a real monitor; it would use every core."""
    assert engine.task_image
    executor = ExecutorAlone(engine.host)
    executor.beside = ("monitor host",)
    executor.start()
    machine = Machine(executor.home)
    code = "import os\nfor n in range(3): os.fork()\nwhile True: pass"
    try:
        key = executor.assign(task("python3", "-c", code, name="busy", cpus=float(CPUS)))
        executor.wait_phase(key, "running")
        group = cgroup.find(executor.inspect(key)["Id"])
        assert group is not None
        yield executor, machine, group
        executor.cancel(key)
        executor.wait_report(key)
        said = executor.state
        executor.wait(lambda: (s := said()) and s.cpu_weight_pct is None, "no weight without one")
    finally:
        machine.close()
        executor.stop()


@pytest.mark.docker
def test_the_owners_own_work_comes_first(
    busy_task: tuple[ExecutorAlone, Machine, cgroup.Group],
) -> None:
    executor, machine, group = busy_task

    def weight_pct() -> float:
        machine.look()
        return machine.weight_pct

    owner = Owner()
    try:
        weight_pct()
        beats = len(machine.expected)
        executor.wait(lambda: weight_pct() < 2, "the least weight")
        beats = len(machine.expected) - beats
        part = part_of(owner, executor, group)
    finally:
        owner.close()
    ended_s = time.monotonic()
    executor.wait(
        lambda: weight_pct() == NORMAL_PCT or time.monotonic() > ended_s + PATIENCE_S, "calm"
    )
    rose_s = time.monotonic() - ended_s
    print(f"least after {beats} beats, the owner has {part:.3f}; normal {rose_s:.1f} s later")
    assert max(machine.tasks_pcts) > 0, "the task is seen, whatever else runs"
    assert beats <= MOST_BEATS
    assert part > 0.7, "at the normal weight it is a half"
    others = machine.owner_pcts[-int(PATIENCE_S) :]
    assert machine.weight_pct == NORMAL_PCT or max(others) > OWNER_QUIET_PCT, others
    wrong = [
        (count, weight) for count, weight in machine.seen
        if not any(abs(weight - pct) < 1 for pct in machine.expected[max(count - 2, 0) : count + 1])
    ]  # fmt: skip
    assert wrong == [], machine.expected
