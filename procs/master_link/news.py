"""What the other processes say, as the rest of master_link reads it; and the bells it rings."""

import asyncio
import time

from procs.master_link import core
from shared.bus import Bus
from shared.egress import is_for_tasks
from shared.messages import (
    Engine,
    GpuLoad,
    HeldTask,
    HostLoad,
    OwnerWant,
    ProcessState,
    TaskPhase,
    TaskState,
    VpnState,
)
from shared.taskdir import TaskKey

READS = ("task.state", "owner.want", "process.state", "host.load", "gpu.load", "vpn.state")
EGRESS_GRACE_S = 5.0  # two restarts, and the first network of an executor that has just begun


class Bell:
    """Wakes all who wait. Look first, then wait: nothing can happen in between."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Until it rings, or `timeout_s` has passed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            if timeout_s is None:
                await waiter
            else:
                await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)


class News:
    """The newest facts. None: no news, and nothing may be done because of it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bells: dict[TaskKey, Bell] = {}
        self._engine = Engine()
        self._gpus: dict[str, GpuLoad] = {}
        self._load: HostLoad | None = None
        self._egress_seen_s = time.monotonic()  # just begun: it may come
        self.held: dict[TaskKey, HeldTask] = {}
        self.executor_heard = asyncio.Event()
        self.any = Bell()

    def bell(self, key: TaskKey) -> Bell:
        """Rings when the executor has something new to say of `key`."""
        return self._bells.setdefault(key, Bell())

    def forget(self, key: TaskKey) -> None:
        self._bells.pop(key, None)

    def take(self) -> None:
        """Look at what came, and ring."""
        self._note_hardware()
        if self._covers_tasks():
            self._egress_seen_s = time.monotonic()
        self.any.ring()
        state = self.task_state()
        if state is None:
            return
        self.executor_heard.set()
        before, self.held = self.held, core.held_tasks(state)
        for key in before.keys() | self.held.keys():
            if key in self._bells and before.get(key) != self.held.get(key):
                self._bells[key].ring()

    def _note_hardware(self) -> None:
        """The last that was known: a monitor or engine that is away takes no hardware with it."""
        now_s = time.monotonic()
        state, load = self.task_state(), self._bus.inbox.fresh(HostLoad, now_s)
        if state is not None and state.engine.available:
            self._engine = state.engine
        self._load = load or self._load
        self._gpus.update({g.gpu_set: g for g in self.gpu_loads()})

    @property
    def hardware(self) -> tuple[HostLoad | None, Engine, tuple[GpuLoad, ...]]:
        return self._load, self._engine, tuple(self._gpus.values())

    @property
    def hardware_known(self) -> bool:
        return self._load is not None and self._engine.version != ""

    def phase(self, key: TaskKey) -> TaskPhase:
        held = self.held.get(key)
        return TaskPhase.ACCEPTED if held is None else held.phase

    def task_state(self) -> TaskState | None:
        return self._bus.inbox.fresh(TaskState, time.monotonic())

    def owner(self) -> OwnerWant | None:
        return self._bus.inbox.fresh(OwnerWant, time.monotonic())

    def processes(self) -> ProcessState | None:
        return self._bus.inbox.fresh(ProcessState, time.monotonic())

    def host_load(self) -> HostLoad | None:
        return self._bus.inbox.fresh(HostLoad, time.monotonic())

    def vpn(self) -> VpnState | None:
        return self._bus.inbox.fresh(VpnState, time.monotonic())

    def gpu_loads(self) -> tuple[GpuLoad, ...]:
        return tuple(self._bus.inbox.all_fresh(GpuLoad, time.monotonic()).values())

    def egress_ready(self) -> bool | None:
        """Is there a network for tasks that the firewall covers? None: there was one a moment
        ago, or there may be one soon; a process that was killed is back within two seconds."""
        if self._covers_tasks():
            return True
        return None if time.monotonic() - self._egress_seen_s < EGRESS_GRACE_S else False

    def _covers_tasks(self) -> bool:
        vpn = self.vpn()
        return vpn is not None and any(is_for_tasks(b) for b in vpn.covered_bridges)
