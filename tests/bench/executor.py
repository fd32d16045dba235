"""What the worker costs beside bare Docker, as ratios of one run.

    python -m tests.bench.executor [COUNT]

Latency: one bare, one ours, in turn: create, start, wait, logs and remove through Docker's API,
behind the same walls and with Docker's local log driver; then the same command as a task, from
submit to result. A task's container is removed after its result, so the ratio without the bare
removal is printed too. Throughput: the same with 1, 2, 4 and 8 at once, all removals included,
with the CPU time of each process for one task. Dependencies: what requirements add to the
preparation of a task, the first time and from then on, from an index on this machine. The master
is a small one in this process.
"""

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from procs.executor.quota import DEFAULT_DISK_BYTES, DEFAULT_MEMORY_BYTES, Grant
from procs.executor.sandbox import Image, Place, container
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import REPORT, TaskKey, read_report
from tests.bench.cost import cpu_s, family
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.link_master import FakeMaster
from tests.fakes.pip_index import PipIndex
from tests.system.engine.private import PrivateEngine
from tests.system.whole import LONGEST_S, Worker, check_out, docker_api, short_folder

COMMAND = ("python3", "-c", "print('hello')")
GRANT = Grant(1.0, DEFAULT_MEMORY_BYTES, DEFAULT_DISK_BYTES, 256)
HEARTBEAT_S = 10.0
ROUNDS = 4  # bare and ours in turn
WARM_UP = 3  # the first runs read the image from disk
AT_ONCE = (1, 2, 4, 8)
INSTALLS = 5
SMALLEST_COST_S = 0.001  # less is the noise of a preparation
MOST_LATENCY, LEAST_THROUGHPUT, LEAST_CACHED = 1.08, 0.92, 20.0  # what is promised


@contextmanager
def own_engine() -> Iterator[PrivateEngine]:
    private = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    try:
        private.start()
        yield private
    finally:
        private.stop("--purge")


@asynccontextmanager
async def connected(
    engine: PrivateEngine, folder: Path
) -> AsyncIterator[tuple[Worker, FakeMaster]]:
    """The whole worker, registered with a master in this process."""
    check_out(folder)
    master = FakeMaster()
    master.heartbeat_s = HEARTBEAT_S
    master.on_result = _note
    await master.start()
    settings = {
        "DOCKER_HOST": engine.host,
        "TASK_IMAGE": engine.task_image,
        "RESERVED_CPUS": "0",  # so that as many run at once as bare ones do
    }
    worker = Worker(folder, MASTER_NODE_URL=master.url, **settings)
    worker.start()
    try:
        await master.until(lambda: master.channel is not None, LONGEST_S)
        await asyncio.to_thread(worker.may_take, GRANT.memory_bytes)
        yield worker, master
    finally:
        await asyncio.to_thread(worker.stop)
        await master.close()


class Bare:
    """The same container with nothing of ours."""

    def __init__(self, api: docker.APIClient, image: str, folder: Path) -> None:
        self._api = api
        self._folder = folder
        place = Place(TaskKey("bare", 1), folder, folder, "", folder)
        found: dict[str, Any] = api.inspect_image(image)  # type: ignore[no-untyped-call]
        self._body = container(place, Image(found["Id"]), GRANT, "runc")
        self._body |= {"Entrypoint": found["Config"]["Entrypoint"], "Cmd": list(COMMAND)}
        self._body["Env"] = found["Config"]["Env"]
        host = self._body["HostConfig"]
        host["LogConfig"] = {"Type": "local"}
        host["Mounts"] = [m for m in host["Mounts"] if m["Target"] in ("/task", "/output")]

    def run(self) -> tuple[float, float]:
        """Seconds of one run, and of its removal alone."""
        for name in ("input", "output"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).mkdir(parents=True)
        os.chown(self._folder / "output", 65534, 65534)
        began_s = time.monotonic()
        made = self._api.create_container_from_config(self._body)  # type: ignore[no-untyped-call]
        self._api.start(made["Id"])
        assert self._api.wait(made["Id"])["StatusCode"] == 0
        assert self._api.logs(made["Id"]) == b"hello\n"
        logged_s = time.monotonic()
        self._api.remove_container(made["Id"], v=True)
        removed_s = time.monotonic()
        return removed_s - began_s, removed_s - logged_s


async def ours(master: FakeMaster, key: TaskKey) -> tuple[float, float, float]:
    """Wall-clock times of one task's submission, acceptance and result."""
    arrived: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    awaited[key] = arrived
    submitted = time.time()
    request = pb.TaskAssignmentRequest(task_id=key.task_id, attempt=1, command=COMMAND)
    answer = await master.assign(request)
    accepted = time.time()
    assert answer.accepted, answer
    result = await asyncio.wait_for(arrived, LONGEST_S)
    assert master.memory.log(key) == b"hello\n"
    return submitted, accepted, result


awaited: dict[TaskKey, "asyncio.Future[float]"] = {}


def _note(key: TaskKey) -> None:
    """A result has come."""
    future = awaited.pop(key, None)
    if future is not None:
        future.set_result(time.time())


def stages(worker: Worker, key: TaskKey, times: tuple[float, float, float]) -> dict[str, float]:
    """Where a task's time went, in milliseconds, from its report's phases."""
    submitted, accepted, result = times
    places = (worker.home / name / key.directory for name in ("kept", "tasks"))
    report = read_report(next(place for place in places if (place / REPORT).exists()))
    at = {str(phase.phase): phase.at_unix_s for phase in report.phases}
    ended = report.finished_unix_s
    points = {
        "submit to accepted": (submitted, accepted),
        "accepted to preparing": (at["accepted"], at["preparing"]),
        "preparing to running": (at["preparing"], at["running"]),
        "running (the task itself)": (at["running"], ended),
        "ended to collecting": (ended, at["collecting"]),
        "collecting to result": (at["collecting"], result),
    }
    return {name: 1000 * (end - begin) for name, (begin, end) in points.items()}


async def measure(count: int) -> bool:
    with own_engine() as engine, short_folder() as folder, docker_api(engine.host) as api:
        async with connected(engine, folder / "c") as (worker, master):
            rig = Rig(engine, worker, master, folder)
            fast = await latency(rig, Bare(api, engine.task_image, folder / "bare"), count)
            ratios = [await throughput(rig, at_once, count) for at_once in AT_ONCE]
        cached = dependencies(engine, folder)
    return fast <= MOST_LATENCY and min(ratios) >= LEAST_THROUGHPUT and cached >= LEAST_CACHED


@dataclass(frozen=True)
class Rig:
    """All that is measured."""

    engine: PrivateEngine
    worker: Worker
    master: FakeMaster
    folder: Path


async def latency(rig: Rig, bare: Bare, count: int) -> float:
    bare_s: list[float] = []
    removal_s: list[float] = []
    ours_s: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(-WARM_UP, count):
        whole_s, last_s = await asyncio.to_thread(bare.run)
        key = TaskKey(f"t{number + WARM_UP}", 1)
        times = await ours(rig.master, key)
        if number >= 0:
            bare_s.append(whole_s)
            removal_s.append(last_s)
            ours_s.append(times[2] - times[0])
            parts.append(stages(rig.worker, key, times))
        await asyncio.to_thread(_is_let_go, rig.worker)
    return _print(bare_s, removal_s, ours_s, parts)


async def throughput(rig: Rig, at_once: int, count: int) -> float:
    """Tasks a second, ours to bare; in turn, so that both meet the same machine."""
    bare_s = ours_s = 0.0
    spent: Counter[str] = Counter()
    for turn in range(ROUNDS):
        bare_s += await asyncio.to_thread(many_bare, rig, at_once, count // ROUNDS)
        before = cpu_by_process(rig)
        ours_s += await many_ours(rig, at_once, count // ROUNDS, f"n{at_once}-{turn}")
        spent += cpu_by_process(rig) - before
    done = count // ROUNDS * ROUNDS
    print(f"{at_once} at once: bare {done / bare_s:.2f}/s, ours {done / ours_s:.2f}/s,", end=" ")
    print(f"ratio {bare_s / ours_s:.3f} (target {LEAST_THROUGHPUT}); CPU ms a task:", end=" ")
    print(", ".join(f"{name} {1000 * s / done:.1f}" for name, s in spent.most_common()))
    return bare_s / ours_s


def many_bare(rig: Rig, at_once: int, count: int) -> float:
    """Seconds for `count` runs, `at_once` of them side by side."""
    todo = iter(range(count))
    lock = threading.Lock()

    def work(number: int) -> None:
        with docker_api(rig.engine.host) as api:
            bare = Bare(api, rig.engine.task_image, rig.folder / f"bare{number}")
            while True:
                with lock:
                    if next(todo, None) is None:
                        return
                bare.run()

    began_s = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, range(at_once)))
    return time.monotonic() - began_s


async def many_ours(rig: Rig, at_once: int, count: int, name: str) -> float:
    """The same as tasks; the end is when the last container is gone."""
    free = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with free:
            await ours(rig.master, TaskKey(f"{name}-{number}", 1))

    began_s = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(count)))
    await asyncio.to_thread(_is_let_go, rig.worker)
    return time.monotonic() - began_s


def cpu_by_process(rig: Rig) -> Counter[str]:
    """Seconds of CPU so far of each program of the worker, and of the engine's."""
    pids = {**rig.worker.pids(), "supervisord": rig.worker.pid}
    engine = int((rig.engine.folder / "docker.pid").read_text())
    pids |= {"dockerd": engine, "containerd": next(filter(_is_containerd, family(engine)))}
    return Counter({name: cpu_s(pid) for name, pid in pids.items()})


def _is_containerd(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "containerd"


def dependencies(engine: PrivateEngine, folder: Path) -> float:
    """How many times less requirements cost once they are installed."""
    namespace = (engine.folder / "namespace").read_text().strip()
    with closing(PipIndex(folder, namespace)) as index:
        for version in range(INSTALLS):
            index.put("tool", f"{version}", {"tool.py": b""})
        executor = ExecutorAlone(
            engine.host, namespace, PIP_INDEX_URL=index.url, PIP_CERT=str(index.cert)
        ).start()
        try:
            plain_s = statistics.median(_prepare_s(executor, "plain"))
            cold_s = statistics.median(_prepare_s(executor, "cold", "tool==")) - plain_s
            cached_s = statistics.median(_prepare_s(executor, "cached", "tool==")) - plain_s
        finally:
            executor.stop()
    ratio = cold_s / max(cached_s, SMALLEST_COST_S)
    print(f"requirements: first {1000 * cold_s:.0f} ms, then {1000 * cached_s:.1f} ms:", end=" ")
    print(f"{ratio:.0f} times less (target {LEAST_CACHED})")
    return ratio


def _prepare_s(executor: ExecutorAlone, name: str, requirement: str = "") -> list[float]:
    """From its acceptance to its run, of each task."""
    found = []
    for number in range(INSTALLS):
        wanted = (f"{requirement}{number}",) if requirement else ()
        key = executor.assign(task("true", name=f"{name}-{number}", requirements=wanted))
        report = executor.wait_report(key)
        assert report.phase is TaskPhase.SUCCEEDED, report
        found.append((report.started_unix_s or 0.0) - report.accepted_unix_s)
        executor.wait_released(key)
    return found


def _is_let_go(worker: Worker) -> None:
    """Its container is removed after the result: not at the next one's cost."""
    deadline_s = time.monotonic() + LONGEST_S
    while worker.held():
        assert time.monotonic() < deadline_s, worker.held()
        time.sleep(0.01)


def _print(
    bare_s: list[float], removal_s: list[float], ours_s: list[float], parts: list[dict[str, float]]
) -> float:
    print(f"{len(ours_s)} tasks, load average {os.getloadavg()[0]:.2f}; milliseconds")
    _line("bare", bare_s)
    _line("  of that its removal", removal_s)
    _line("ours", ours_s)
    for name in parts[0]:
        _line(f"  {name}", [part[name] / 1000 for part in parts])
    ratio = statistics.median(ours_s) / statistics.median(bare_s)
    p90 = _ms(ours_s, 0.9) / _ms(bare_s, 0.9)
    unremoved_s = [whole - last for whole, last in zip(bare_s, removal_s, strict=True)]
    print(f"ratio: median {ratio:.3f} (target {MOST_LATENCY}), p90 {p90:.3f}")
    print(f"  without the removal: median {_ms(ours_s, 0.5) / _ms(unremoved_s, 0.5):.3f}")
    return ratio


def _line(name: str, figures: list[float]) -> None:
    print(f"  {name:<28} median {_ms(figures, 0.5):6.1f}   p90 {_ms(figures, 0.9):6.1f}")


def _ms(figures: list[float], share: float) -> float:
    return 1000 * sorted(figures)[min(int(share * len(figures)), len(figures) - 1)]


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    sys.exit(not asyncio.run(measure(wanted)))
