"""An executor without Docker: the real bus, the real directories, phases moved by the test."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from shared.bus import Bus
from shared.messages import (
    Capacity,
    Engine,
    HeldTask,
    PhaseAt,
    TaskPhase,
    TaskState,
    TaskWant,
)
from shared.taskdir import ARCHIVE, LOG, REPORT, SPEC, TASKS, Report, TaskKey, write_record
from tests.fakes.keeper_log import KeeperLog

ROOMY = Capacity(
    cpus=8.0, memory_bytes=2**40, disk_bytes=2**40, max_held=100, trust_level=3
)  # fmt: skip
WORK = (TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING)


class FakeExecutor:
    """Holds what is wanted; ends what should stop; lets go of what is not wanted any more."""

    def __init__(self, home: Path, runs: bool = False) -> None:
        self.home = home
        self.runs = runs  # whether each task is run at once, to success
        self.engine = Engine(available=True, version="20.10.24", runtimes=("runc",))
        self.capacity = ROOMY
        self.held: dict[TaskKey, HeldTask] = {}
        self.want: TaskWant | None = None
        self.logs: dict[TaskKey, KeeperLog] = {}
        self.output = b""
        self._bus = Bus(home, "executor", ("task.want",))
        for descriptor in self._bus.filenos():
            asyncio.get_running_loop().add_reader(descriptor, self._on_bus)
        self._beating = asyncio.create_task(self._beat())

    async def close(self) -> None:
        self._beating.cancel()
        for descriptor in self._bus.filenos():
            asyncio.get_running_loop().remove_reader(descriptor)
        for log in self.logs.values():
            log.close()
        self._bus.close()

    def directory(self, key: TaskKey) -> Path:
        return self.home / TASKS / key.directory

    # -------------------------------------------------------------- the bus

    async def _beat(self) -> None:
        while True:
            self.publish()
            await asyncio.sleep(0.2)

    def publish(self) -> None:
        self._bus.publish(
            TaskState(
                at_s=time.monotonic(),
                engine=self.engine,
                tasks=tuple(self.held.values()),
                capacity=self.capacity,
            )
        )
        self._on_bus()

    def _on_bus(self) -> None:
        if self._bus.drain():
            want = self._bus.inbox.fresh(TaskWant, time.monotonic())
            if want is not None:
                self.want = want
                self._reconcile(want)

    def _reconcile(self, want: TaskWant) -> None:
        before = dict(self.held)
        wanted = {TaskKey(task.task_id, task.attempt): task for task in want.tasks}
        for key in list(self.held):
            if key not in wanted and self.held[key].phase.is_final:
                del self.held[key]
                if key in self.logs:
                    self.logs.pop(key).close()
        for key, task in wanted.items():
            if key not in self.held and (self.directory(key) / SPEC).exists():
                self._take(key)
            if key not in self.held:
                continue  # let go of already, and the link does not know it yet
            if task.stop is not None and not self.held[key].phase.is_final:
                self.finish(key, TaskPhase.CANCELLED, error=task.stop_detail or task.stop)
            elif self.runs and self.held[key].phase is TaskPhase.ACCEPTED:
                self.run(key)
        if self.held != before:
            self.publish()

    def _take(self, key: TaskKey) -> None:
        self.held[key] = HeldTask(
            task_id=key.task_id,
            attempt=key.attempt,
            phase=TaskPhase.ACCEPTED,
            directory=key.directory,
        )
        if (self.directory(key) / REPORT).exists():
            self.move(key, TaskPhase.SUCCEEDED)
        else:
            self.move(key, TaskPhase.ACCEPTED)

    # -------------------------------------------------------------- the task's life

    def move(self, key: TaskKey, phase: TaskPhase, detail: str = "", **more: Any) -> None:
        """Enter a phase (or say something new of the one it is in), and publish."""
        task = self.held[key]
        phases = task.phases
        if not phases or phases[-1].phase is not phase:
            phases = (*phases, PhaseAt(phase=phase, at_unix_s=time.time()))
        self.held[key] = HeldTask(
            task_id=key.task_id,
            attempt=key.attempt,
            phase=phase,
            directory=key.directory,
            phases=phases,
            detail=detail,
            **more,
        )
        self.publish()

    def log(self, key: TaskKey) -> KeeperLog:
        if key not in self.logs:
            self.logs[key] = KeeperLog(self.directory(key) / LOG)
        return self.logs[key]

    def run(self, key: TaskKey) -> None:
        """The whole of a short task at once."""
        for phase in WORK:
            self.move(key, phase)
        self.log(key).write(b"hello\n")
        self.finish(key)

    def finish(
        self, key: TaskKey, phase: TaskPhase = TaskPhase.SUCCEEDED, **more: Any
    ) -> Report:
        """Output, report, final phase: in this order."""
        if self.output:
            (self.directory(key) / ARCHIVE).write_bytes(self.output)
            more |= {
                "output_sha256": hashlib.sha256(self.output).hexdigest(),
                "output_bytes": len(self.output),
                "output_files": 1,
            }
        report = Report(
            task_id=key.task_id,
            attempt=key.attempt,
            phase=phase,
            exit_code=0 if phase is TaskPhase.SUCCEEDED else -1,
            finished_unix_s=time.time(),
            **more,
        )
        write_record(self.directory(key) / REPORT, report)
        self.move(key, phase)
        return report
