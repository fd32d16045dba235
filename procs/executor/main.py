"""The executor: holds the attempts that master_link wants, and runs them in Docker.

Starting is recovering: `Recovery` reads the directories, and the loop goes on from there. What
to do is decided in core.py; how, blocking, in work.py; this file ties them to the bus.

Reads task.want, link.state. Publishes task.state.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from inotify_simple import INotify, flags

from procs.executor import cgroup, core, prepare, quota
from procs.executor.attempt import Attempt, Outcome
from procs.executor.core import ALIVE, Event, Instruction, Step
from procs.executor.engine import (
    About,
    DockerEngine,
    Engine,
    EngineAwayError,
    EngineRefusedError,
    Seen,
)
from procs.executor.jobs import Jobs
from procs.executor.keeper_build import ensure_keeper
from procs.executor.recovery import recover
from procs.executor.store import Store, row
from procs.executor.verdict import Failure, Stop
from procs.executor.work import Work, boot_id, read_run
from shared import messages, service, taskdir
from shared.messages import (
    Capacity,
    LinkState,
    StopReason,
    TaskPhase,
    TaskState,
    TaskUse,
    TaskWant,
    WantedTask,
)
from shared.taskdir import RUN, TASKS, TaskKey

log = logging.getLogger("executor")

NAME = "executor"
CAPABILITIES = frozenset({"CHOWN", "DAC_OVERRIDE", "KILL"})
READS = ("task.want", "link.state")

PING_EACH_S = 2.0  # with PING_S of the engine: an engine that is away is known within 3 s
LOOK_EACH_S = 5.0  # events are only the bell; the list is the truth
ABSENT_S = 60.0  # a running task that is not wanted is stopped after so long of fresh messages
HARD_STOP_S = 5.0  # from the keeper's hard stop (SIGPWR) to SIGKILL
RETRY_S = 1.0  # before an attempt is made ready again after a start that did not take effect
DISK_LOOK_FACTOR = 100  # a look at the disk may cost a hundredth of the time …
DISK_LOOK_LEAST_S, DISK_LOOK_MOST_S = 0.5, 5.0  # … within these bounds


class Executor:
    """The loop's side: every attribute belongs to the loop's thread."""

    def __init__(self, context: service.Context) -> None:
        self._bus = context.bus
        self._settings = context.settings
        self._tasks = context.home / TASKS
        self._home = str(context.home)
        self._engine: Engine = DockerEngine(context.settings.docker_host)
        keeper = ensure_keeper(context.home / "lib")
        self._work = Work(self._engine, context.home, keeper, context.settings.sandbox)
        self._jobs: Jobs[Outcome | Callable[[], None]] = Jobs()
        self._store = Store(context.home / "lib" / "executor.db")
        self._inotify = INotify(nonblocking=True)
        self._watches: dict[int, TaskKey] = {}
        self._boot_id = boot_id()
        self._about: About | None = None
        self._engine_detail = "not asked yet"
        self._ping_due_s = self._look_due_s = 0.0
        self._trust_level = 0
        self._changed = True
        self._bell: SimpleQueue[TaskKey | None] = SimpleQueue()
        self._attempts: dict[TaskKey, Attempt] = {}
        for attempt in recover(self._tasks, self._store.phases(), self._boot_id):
            self._adopt(attempt)
        threading.Thread(target=self._listen, name="events", daemon=True).start()

    # -------------------------------------------------------------- the loop

    def descriptors(self) -> Iterable[int]:
        return self._jobs.fileno(), self._inotify.fileno()

    def beat(self, now_s: float) -> None:
        self._ask_engine(now_s)
        for attempt in list(self._attempts.values()):
            self._tend(attempt, now_s)
        self._follow_wants(now_s)
        self._begin_waiting(now_s)
        self._publish()

    def wake(self, ready: set[int], now_s: float) -> None:
        for lane, result in self._jobs.results():
            if isinstance(result, Outcome):
                self._finish(lane, result, now_s)
            else:
                result()
        if self._inotify.fileno() in ready:
            for key in {self._watches.get(event.wd) for event in self._inotify.read(timeout=0)}:
                if key in self._attempts:
                    self._read_record(self._attempts[key])
        self._hear_bell()
        self._follow_wants(now_s)
        self._begin_waiting(now_s)
        if self._changed:
            self._publish()

    def close(self) -> None:
        self._jobs.close()
        self._store.close()

    def _publish(self) -> None:
        self._changed = False
        about = self._about
        self._bus.publish(
            TaskState(
                at_s=time.monotonic(),
                engine=messages.Engine(
                    available=about is not None,
                    detail=self._engine_detail,
                    version=about.version if about else "",
                    runtimes=about.runtimes if about else (),
                ),
                tasks=tuple(a.held() for a in self._attempts.values()),
                capacity=self._capacity(),
            )
        )

    # -------------------------------------------------------------- attempts

    def _adopt(self, attempt: Attempt) -> None:
        self._attempts[attempt.key] = attempt
        most = self._capacity()
        if attempt.step in core.ACTIVE:
            attempt.grant = quota.grant(attempt.spec, most)
        self._watch(attempt)
        if attempt.step is Step.DONE:
            self._perform(attempt, Instruction.CLEAN)
        if attempt.step is Step.STOPPING:
            self._perform(attempt, Instruction.STOP)
        if attempt.step in ALIVE:
            self._read_record(attempt)
        self._changed = True

    def _watch(self, attempt: Attempt) -> None:
        path = attempt.directory / RUN
        if attempt.step in (*ALIVE, Step.PREPARING) and path.exists():
            mask = flags.MODIFY | flags.CLOSE_WRITE
            self._watches[self._inotify.add_watch(path, mask)] = attempt.key

    def _apply(self, attempt: Attempt, event: Event) -> None:
        """Move, note the new phase, do what follows."""
        before = attempt.step
        attempt.step, instruction = core.move(attempt.key.directory, before, event)
        if attempt.step is before and instruction is None:
            return
        log.info("%s: %s -> %s (%s)", attempt.key.directory, before, attempt.step, event)
        self._changed = True
        if attempt.report is None and attempt.step in core.PHASES:
            attempt.enter(attempt.phase, self._entered_unix_s(attempt))
        elif attempt.report is not None:
            attempt.enter(attempt.report.phase, attempt.report.finished_unix_s)
        if attempt.step in (Step.COLLECTING, Step.DONE):
            attempt.abandoned.set()
        if instruction is not None:
            self._perform(attempt, instruction)
        if before is not attempt.step and attempt.step is not Step.RELEASED:
            self._store.put(row(attempt.held(), attempt.spec.accepted_unix_s, attempt.report))

    def _entered_unix_s(self, attempt: Attempt) -> float:
        started = attempt.record.started
        if attempt.phase is TaskPhase.RUNNING and started is not None:
            return started.unix_ns / 1e9
        return time.time()

    def _perform(self, attempt: Attempt, instruction: Instruction) -> None:
        work: dict[Instruction, Callable[[Attempt], Outcome]] = {
            Instruction.PREPARE: self._work.prepare,
            Instruction.START: self._work.start,
            Instruction.STOP: self._work.stop,
            Instruction.COLLECT: self._work.collect,
            Instruction.CLEAN: self._work.clean,
        }
        if instruction is Instruction.STOP:
            attempt.stop_stage = 1
            attempt.stop_due_s = time.monotonic() + attempt.spec.stop_grace_s
        self._jobs.submit(attempt.key, partial(work[instruction], attempt))

    def _finish(self, lane: object, outcome: Outcome, now_s: float) -> None:
        """A job has ended: keep what it learned, then move."""
        attempt = self._attempts.get(lane) if isinstance(lane, TaskKey) else None
        if attempt is None:
            return
        attempt.lane_idle_since_s = now_s
        _learn(attempt, outcome)
        if outcome.disk_bytes is not None:
            self._judge_disk(attempt, outcome.disk_bytes, now_s)
        if outcome.event is None:
            return
        if outcome.event is Event.NEVER_RAN:
            attempt.refusals += outcome.refused
            attempt.retry_at_s = now_s + RETRY_S
        if outcome.event is Event.ENDED:
            attempt.record = read_run(attempt.directory)
        if outcome.event is Event.PREPARED and attempt.step is Step.PREPARING:
            self._watch(attempt)
        attempt.waits_for_inputs = outcome.event is Event.INPUTS_MISSED
        self._apply(attempt, outcome.event)

    def _read_record(self, attempt: Attempt) -> None:
        """The keeper may have written: its word is the truth."""
        if attempt.step not in ALIVE:
            return
        attempt.record = record = read_run(attempt.directory)
        if record.started is not None and attempt.step is Step.STARTING:
            self._jobs.submit(attempt.key, partial(self._work.seal, attempt))
            self._apply(attempt, Event.STARTED)
        if record.ended is not None or record.failed_errno is not None:
            self._apply(attempt, Event.ENDED)
        elif record.started is not None and record.started.boot_id != self._boot_id:
            self._jobs.submit(attempt.key, partial(self._work.autopsy, attempt, present=False))

    # -------------------------------------------------------------- wants

    def _follow_wants(self, now_s: float) -> None:
        """Compare what is wanted with what is held; silence and staleness are no news."""
        link = self._bus.inbox.fresh(LinkState, now_s)
        if link is not None:
            self._trust_level, self._work.node_id = link.trust_level, link.node_id
        want = self._bus.inbox.fresh(TaskWant, now_s)
        if want is None:
            for attempt in self._attempts.values():
                attempt.absent_since_s = None
            return
        wanted = {TaskKey(w.task_id, w.attempt): w for w in want.tasks}
        for key, one in wanted.items():
            held = self._attempts.get(key) or self._take(key)
            if held is not None:
                held.absent_since_s = None
                self._heed(held, one)
        for key in [k for k in self._attempts if k not in wanted]:
            self._let_go(self._attempts[key], now_s)

    def _take(self, key: TaskKey) -> Attempt | None:
        """A new attempt: its spec is on disk, or it is not accepted."""
        for attempt in recover(self._tasks, {}, self._boot_id, only=key):
            self._adopt(attempt)
        return self._attempts.get(key)

    def _heed(self, attempt: Attempt, wanted: WantedTask) -> None:
        if wanted.stop is None or attempt.stop is not None:
            return
        sentence = wanted.stop_detail or _STOP_SENTENCES[wanted.stop]
        self._stop(attempt, TaskPhase.CANCELLED, sentence)

    def _stop(self, attempt: Attempt, phase: TaskPhase, sentence: str) -> None:
        if attempt.stop is None and attempt.step in (Step.WAITING, *core.ACTIVE):
            attempt.stop = Stop(phase, sentence, time.monotonic_ns(), self._boot_id)
            attempt.abandoned.set()
            self._apply(attempt, Event.STOP_WANTED)

    def _let_go(self, attempt: Attempt, now_s: float) -> None:
        if attempt.step is Step.CLEANED:
            self._apply(attempt, Event.UNWANTED)
            self._watches = {wd: k for wd, k in self._watches.items() if k != attempt.key}
            del self._attempts[attempt.key]
            return
        if attempt.absent_since_s is None:
            attempt.absent_since_s = now_s
        elif now_s - attempt.absent_since_s >= ABSENT_S:
            self._stop(attempt, TaskPhase.CANCELLED, "the master no longer wants it")

    def _begin_waiting(self, now_s: float) -> None:
        """Give resources to waiting attempts, once it is known that they are still wanted."""
        waiting = [
            a for a in self._attempts.values()
            if a.step is Step.WAITING and a.retry_at_s <= now_s and a.absent_since_s is None
        ]  # fmt: skip
        if not waiting or self._about is None or not self._bus.inbox.fresh(TaskWant, now_s):
            return
        active = [a for a in self._attempts.values() if a.step in core.ACTIVE]
        preparing = sum(a.step in (Step.PREPARING, Step.STARTING) for a in active)
        most = self._capacity()
        grants = [a.grant for a in active if a.grant is not None]
        for spec in quota.choose([a.spec for a in waiting], grants, preparing, most):
            attempt = self._attempts[spec.key]
            attempt.grant = quota.grant(spec, most)
            attempt.detail = ""
            self._apply(attempt, Event.GRANTED)

    def _capacity(self) -> Capacity:
        disk = os.statvfs(self._tasks)
        machine = quota.Machine(_CPUS, _MEMORY_BYTES, disk.f_bavail * disk.f_frsize)
        settings = self._settings
        reserved = quota.Reserved(settings.reserved_cpus, settings.reserved_memory_bytes)
        return quota.capacity(machine, reserved, self._trust_level, settings.max_held_tasks)

    # -------------------------------------------------------------- watching

    def _tend(self, attempt: Attempt, now_s: float) -> None:
        """What time asks of one attempt."""
        if attempt.step is Step.PREPARING and attempt.waits_for_inputs:
            self._look_for_inputs(attempt)
        if attempt.step not in ALIVE:
            return
        started = attempt.record.started
        if started is not None:
            ran_s = now_s - started.monotonic_ns / 1e9
            if ran_s >= attempt.spec.timeout_s:
                sentence = f"it ran longer than its timeout of {attempt.spec.timeout_s:g} s"
                self._stop(attempt, TaskPhase.TIMED_OUT, sentence)
            self._sample(attempt)
            self._look_at_disk(attempt, now_s)
        if attempt.step is Step.STOPPING and now_s >= attempt.stop_due_s:
            self._harder(attempt, now_s)

    def _harder(self, attempt: Attempt, now_s: float) -> None:
        """Its grace is over: the keeper's hard stop, then SIGKILL."""
        attempt.stop_due_s = now_s + HARD_STOP_S
        first, attempt.stop_stage = attempt.stop_stage == 1, 2
        job = partial(self._work.signal, attempt, "SIGPWR") if first else None
        self._jobs.submit(attempt.key, job or partial(self._work.kill, attempt))

    def _look_for_inputs(self, attempt: Attempt) -> None:
        if self._jobs.is_busy(attempt.key):
            return
        try:
            if prepare.missing(attempt.directory, attempt.spec):
                return
        except prepare.InputError as err:
            attempt.failure = Failure("input", str(err))
            self._apply(attempt, Event.PREPARE_FAILED)
            return
        attempt.waits_for_inputs = False
        self._apply(attempt, Event.INPUTS_ARRIVED)

    def _sample(self, attempt: Attempt) -> None:
        found = cgroup.use(attempt.container_id) if attempt.container_id else None
        if found is None or attempt.grant is None:
            return
        before, attempt.last_cpu_ns = attempt.last_cpu_ns, found.cpu_ns
        used_s = (found.cpu_ns - before) / 1e9 / service.PERIOD_S if before is not None else 0.0
        memory = attempt.grant.memory_bytes
        attempt.use = TaskUse(
            cpu_pct=round(100 * used_s / attempt.grant.cpus, 1),
            memory_bytes=found.memory_bytes,
            memory_limit_bytes=memory,
        )
        attempt.memory_sum_pct += 100 * found.memory_bytes / memory
        attempt.memory_samples += 1

    def _look_at_disk(self, attempt: Attempt, now_s: float) -> None:
        if now_s >= attempt.disk_due_s and not self._jobs.is_busy((attempt.key, "disk")):
            attempt.disk_due_s = now_s + DISK_LOOK_MOST_S
            self._jobs.submit((attempt.key, "disk"), partial(self._disk, attempt))

    def _disk(self, attempt: Attempt) -> Callable[[], None]:
        began_s = time.monotonic()
        used = self._work.disk_use(attempt)
        took_s = time.monotonic() - began_s
        pause_s = min(max(DISK_LOOK_FACTOR * took_s, DISK_LOOK_LEAST_S), DISK_LOOK_MOST_S)

        def judge() -> None:
            attempt.disk_due_s = time.monotonic() + pause_s
            self._judge_disk(attempt, used.disk_bytes or 0, time.monotonic())

        return judge

    def _judge_disk(self, attempt: Attempt, used_bytes: int, now_s: float) -> None:
        if attempt.grant is not None and used_bytes >= attempt.grant.disk_bytes:
            limit = attempt.grant.disk_bytes
            sentence = f"it used {used_bytes} bytes of disk, its limit is {limit}"
            self._stop(attempt, TaskPhase.OUT_OF_DISK, sentence)

    # -------------------------------------------------------------- the engine

    def _ask_engine(self, now_s: float) -> None:
        if now_s >= self._ping_due_s and not self._jobs.is_busy("engine"):
            self._ping_due_s = now_s + PING_EACH_S
            self._jobs.submit("engine", self._ping)
        if now_s >= self._look_due_s and self._about and not self._jobs.is_busy("look"):
            self._look_due_s = now_s + LOOK_EACH_S
            self._jobs.submit("look", self._look)

    def _ping(self) -> Callable[[], None]:
        try:
            self._engine.ping()
            about = self._about or self._engine.about()
        except (EngineAwayError, EngineRefusedError) as err:
            return partial(self._engine_is, None, str(err))
        return partial(self._engine_is, about, "")

    def _engine_is(self, about: About | None, detail: str) -> None:
        self._engine_detail = detail
        if (about is None) == (self._about is None):
            self._about = about
            return
        log.warning("the container engine %s", "is there" if about else f"is away: {detail}")
        self._about, self._changed = about, True
        self._look_due_s = 0.0
        for attempt in self._attempts.values():
            if about is None and attempt.step in ALIVE:
                attempt.engine_lapsed = True

    def _look(self) -> Callable[[], None]:
        began_s = time.monotonic()
        try:
            seen = self._engine.seen(self._home)
        except (EngineAwayError, EngineRefusedError):
            return lambda: None
        return partial(self._compare, seen, began_s)

    def _compare(self, seen: Sequence[Seen], began_s: float) -> None:
        """The engine's list against what is held."""
        by_key = {one.key: one for one in seen}
        for attempt in list(self._attempts.values()):
            found = by_key.get(attempt.key)
            if found is not None:
                attempt.container_id = attempt.container_id or found.container_id
                attempt.may_have_container = True
            if self._jobs.is_busy(attempt.key) or attempt.lane_idle_since_s >= began_s:
                continue  # the list is older than what was done since
            if attempt.step in ALIVE and (found is None or found.state in _ENDED_STATES):
                job = partial(self._work.autopsy, attempt, present=found is not None)
                self._jobs.submit(attempt.key, job)
            elif attempt.step is Step.DONE:
                self._perform(attempt, Instruction.CLEAN)
        for one in seen:
            if one.key not in self._attempts and _has_ended(self._tasks, one.key):
                self._jobs.submit("look", partial(self._remove, one.container_id))

    def _remove(self, container_id: str) -> Callable[[], None]:
        """Left over by a life that was killed: the directories prove that it ended."""
        cgroup.kill(container_id)
        try:
            self._engine.remove(container_id)
        except (EngineAwayError, EngineRefusedError) as err:
            log.warning("container %s is not removed yet: %s", container_id[:12], err)
        return lambda: None

    def _listen(self) -> None:
        """Events are the bell; in a thread of their own, for ever."""
        while True:
            try:
                for key in self._engine.deaths(self._home):
                    self._bell.put(key)
            except (EngineAwayError, EngineRefusedError) as err:
                log.debug("no events: %s", err)
            self._bell.put(None)
            time.sleep(1.0)

    def _hear_bell(self) -> None:
        while True:
            try:
                key = self._bell.get_nowait()
            except Empty:
                return
            attempt = self._attempts.get(key) if key else None
            if attempt is not None:
                self._read_record(attempt)
                if attempt.step in ALIVE:
                    self._look_due_s = 0.0
            elif key is None:
                self._ping_due_s = 0.0


def _learn(attempt: Attempt, outcome: Outcome) -> None:
    for name in ("container_id", "image_digest", "stop_signal", "pull_s", "detail"):
        value = getattr(outcome, name)
        if value is not None:
            setattr(attempt, name, value)
    attempt.failure = outcome.failure or attempt.failure
    attempt.loss = outcome.loss or attempt.loss
    attempt.report = outcome.report or attempt.report
    attempt.may_have_container = attempt.may_have_container or outcome.event is Event.PREPARED


def _has_ended(tasks: Path, key: TaskKey) -> bool:
    places = (tasks, tasks.parent / taskdir.KEPT)
    return any((place / key.directory / taskdir.REPORT).exists() for place in places)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_CPUS = os.cpu_count() or 1
_MEMORY_BYTES = _memory_bytes()
_ENDED_STATES = ("exited", "dead", "created", "removing")
_STOP_SENTENCES = {
    StopReason.CANCELLED: "the master cancelled it",
    StopReason.SUPERSEDED: "a newer attempt of the task was assigned",
    StopReason.FORGOTTEN: "the master has recorded its end",
    StopReason.OWNER: "the machine's owner stopped it",
}


def main() -> int:
    return service.run(NAME, CAPABILITIES, READS, Executor)
