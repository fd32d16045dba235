"""A worker that is only its bus: real sockets in a short home, STATEs as the test gives them."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from shared.bus import Bus, bus_directory
from shared.messages import (
    Alert,
    Capacity,
    Engine,
    GpuLoad,
    GpuSample,
    HeldTask,
    HostLoad,
    Inventory,
    LinkPhase,
    LinkState,
    Message,
    NodePhase,
    PhaseAt,
    ProcessInfo,
    ProcessState,
    TaskPhase,
    TaskState,
    TaskUse,
    VpnPhase,
    VpnState,
)

GIB = 2**30


@contextmanager
def short_home() -> Iterator[Path]:
    """A home below /tmp: a unix socket's path may not be long."""
    home = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    for folder in ("run/bus", "log", "lib", "tasks"):
        (home / folder).mkdir(parents=True)
    try:
        yield home
    finally:
        shutil.rmtree(home)


class BusWorker:
    """Publishes for any process; `beat` says everything again, as a process does each second."""

    def __init__(self, home: Path) -> None:
        self.home = home
        bus_directory(home).mkdir(parents=True, exist_ok=True)
        self._buses: dict[str, Bus] = {}
        self._last: dict[tuple[str, str], Message] = {}

    def say(self, source: str, message: Message) -> None:
        if source not in self._buses:
            self._buses[source] = Bus(self.home, source)
        self._last[source, message.topic] = message
        self._buses[source].publish(message)
        self._buses[source].drain()

    def serve(self) -> None:
        """Replay to whoever subscribed meanwhile."""
        for bus in self._buses.values():
            bus.drain()

    def close(self) -> None:
        for bus in self._buses.values():
            bus.close()


def link_state(at_s: float, **fields: object) -> LinkState:
    known: dict[str, object] = {
        "phase": LinkPhase.CONNECTED,
        "master_url": "https://master.example.org",
        "node_id": "node-7f3a",
        "node_name": "attic",
        "node_state": NodePhase.READY,
        "trust_level": 2,
        "heartbeat_acked_unix_s": time.time() - 3,
        "reward_last": 12,
        "reward_total": 3456,
    }
    return LinkState(at_s=at_s, **(known | fields))  # type: ignore[arg-type]


def running_task(task_id: str = "train", attempt: int = 1) -> HeldTask:
    now_unix_s = time.time()
    return HeldTask(
        task_id=task_id,
        attempt=attempt,
        phase=TaskPhase.RUNNING,
        directory=f"{task_id}.{attempt}",
        phases=(
            PhaseAt(phase=TaskPhase.ACCEPTED, at_unix_s=now_unix_s - 75),
            PhaseAt(phase=TaskPhase.PREPARING, at_unix_s=now_unix_s - 74),
            PhaseAt(phase=TaskPhase.RUNNING, at_unix_s=now_unix_s - 70),
        ),
        use=TaskUse(cpu_pct=63.0, memory_bytes=3 * GIB // 2, memory_limit_bytes=2 * GIB),
        image="python:3.11-slim",
        command=("python", "train.py", "--epochs", "10"),
    )


def task_state(at_s: float, *tasks: HeldTask) -> TaskState:
    return TaskState(
        at_s=at_s,
        engine=Engine(available=True, version="20.10.24", runtimes=("runc",)),
        tasks=tasks,
        capacity=Capacity(cpus=6.5, memory_bytes=24 * GIB, disk_bytes=200 * GIB, max_held=100),
    )


def host_load(at_s: float, cpu_pct: float = 41.5) -> HostLoad:
    return HostLoad(
        at_s=at_s,
        inventory=Inventory(
            operating_system="Debian GNU/Linux 12",
            kernel="6.1.0",
            architecture="x86_64",
            cpu_count=8,
            memory_bytes=32 * GIB,
        ),
        cpu_pct=cpu_pct,
        memory_pct=58.0,
        memory_used_bytes=18 * GIB,
        disk_free_bytes=310 * GIB,
        disk_total_bytes=512 * GIB,
        network_received_bytes=int(at_s * 250_000),
        network_sent_bytes=int(at_s * 40_000),
        load_1m=1.7,
        pressure_cpu_pct=12.0,
        pressure_memory_pct=0.0,
        pressure_io_pct=3.0,
        cores_pct=(90, 12, 0, 64, 41, 41, 41, 43),
        tasks_cpu_pct=31.5,
        tasks_memory_bytes=3 * GIB,
        temperature_c=61.0,
    )


def process_state(at_s: float, **fields: object) -> ProcessState:
    since = time.time() - 5000
    names = ("master_link", "executor", "monitor@host", "vpn", "web", "watchdog")
    processes = tuple(
        ProcessInfo(name=name, state="RUNNING", pid=100 + i, restarts=i % 2, since_unix_s=since)
        for i, name in enumerate(names)
    )
    known: dict[str, object] = {"processes": processes}
    return ProcessState(at_s=at_s, **(known | fields))  # type: ignore[arg-type]


def gpu_load(at_s: float) -> GpuLoad:
    """A card that works, one that is lost, one that tells little."""
    lost = Alert(rule="gpu_lost", subject="GPU-b", value=1.0, threshold=1.0, raised_unix_s=5.0)
    well = GpuSample(
        index=0, uuid="GPU-a", name="NVIDIA H100", util_pct=7.0, memory_used_bytes=3 * GIB // 2,
        memory_total_bytes=80 * GIB, temperature_c=41.0, power_w=71.2,
        throttle_reasons=("power cap",), xid=43,
    )  # fmt: skip
    gone = GpuSample(index=1, uuid="GPU-b", name="", reachable=False, reason="it fell off the bus")
    mute = GpuSample(index=2, uuid="GPU-c", name="NVIDIA L4", is_split=True)
    return GpuLoad(at_s=at_s, gpu_set="gpu0", gpus=(well, gone, mute), alerts=(lost,))


def say_all(
    worker: BusWorker, *tasks: HeldTask, host: Mapping[str, Any] | None = None, **link: object
) -> None:
    """Every process of a healthy worker beats once, but for web."""
    at_s = time.monotonic()
    worker.say("master_link", link_state(at_s, **link))
    worker.say("executor", task_state(at_s, *tasks))
    worker.say("monitor@host", msgspec.structs.replace(host_load(at_s), **host or {}))
    worker.say("vpn", VpnState(at_s=at_s, phase=VpnPhase.OFF))
    worker.say("watchdog", process_state(at_s))
