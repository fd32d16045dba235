"""The executor: holds the attempts that master_link wants, and runs them in Docker.

Starting is recovering: recovery.py reads the directories, and the loop goes on from there. What
to do is decided in core.py; how, blocking, in making.py and work.py; what is waited for comes by
supply.py; this file ties them to the bus.

Reads task.want, link.state, host.load, vpn.state, gpu.load. Publishes task.state.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from procs.executor import core, prepare, wants
from procs.executor.attempt import Attempt, Outcome
from procs.executor.bells import Bells
from procs.executor.core import ALIVE, Event, Instruction, Step, Wait
from procs.executor.debug import Debug
from procs.executor.disk_guard import DiskGuard
from procs.executor.engine import DockerEngine, Engine
from procs.executor.image_disk import ImageDisk
from procs.executor.jobs import Jobs
from procs.executor.keeper_build import ensure_keeper
from procs.executor.making import Making
from procs.executor.notes import read_run
from procs.executor.parent import TasksGroup
from procs.executor.recovery import recover
from procs.executor.run_record import Started, began_s
from procs.executor.store import Store, row
from procs.executor.supply import Supply
from procs.executor.use import sample, sample_gpus
from procs.executor.verdict import Stop
from procs.executor.watch import Died, EngineIs, Listed, Watch
from procs.executor.work import Work, boot_id, guarded
from shared import messages, sentences, service, taskdir
from shared.messages import (
    HostLoad,
    LinkState,
    TaskPhase,
    TaskState,
    TaskWant,
)
from shared.sentences import Said
from shared.taskdir import DEBUG, TASKS, TaskKey

log = logging.getLogger("executor")

NAME = "executor"
CAPABILITIES = frozenset({"CHOWN", "DAC_OVERRIDE", "KILL"})
READS = ("task.want", "link.state", "host.load", "vpn.state", "gpu.load")

THREADS = 16  # for jobs; each may hang for a minute in an engine that hangs
SENT_WITHIN_S = 10.0  # a busy engine takes its time with a signal; one that hangs gets no more
HARD_STOP_S = 5.0  # from the keeper's hard stop (SIGPWR) to SIGKILL
APART_S = 0.2  # a task's phases come in bursts, and each STATE wakes three processes …
TOLD_AT_ONCE = (Step.RUNNING, Step.DONE, Step.CLEANED)  # … but these are waited for
RETRY_S = 1.0  # before an attempt is made ready again after a start that did not take effect
DISK_RETRY_S = 5.0  # before a report is tried again that found no room
RECORD_EACH_S = 5.0  # a run record is read so often, rung for or not


class _Source(Protocol):
    """What wakes the loop."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Ending:
    """A lane of what ends an attempt, beside the attempt's own, where a call may hang."""

    key: TaskKey
    is_kill: bool = False  # in gVisor a hard stop may hang too


class Executor:
    """The loop's side: every attribute belongs to the loop's thread."""

    def __init__(self, context: service.Context) -> None:
        self._bus = context.bus
        self._settings = context.settings
        self._tasks = context.home / TASKS
        self._store = Store(context.home / "lib" / "executor.db")
        engine: Engine = DockerEngine(context.settings.docker_host)
        keeper = ensure_keeper(context.home / "lib")
        self._attempts: dict[TaskKey, Attempt] = {}
        self._supply = Supply(
            context, engine, keeper, self._attempts, self._apply, self._used_bytes
        )
        runtime, layers = context.settings.sandbox, self._supply.layers
        self._debug = Debug(context.home, context.settings.debug_retention_h)
        self._making = Making(
            engine, context.home, keeper, runtime, self._supply.networks, layers,
            context.settings.allowed_images,
        )  # fmt: skip
        self._work = Work(engine, runtime, self._debug, layers)
        self._jobs: Jobs[Outcome | Callable[[], None]] = Jobs(THREADS, "job")
        self._ends: Jobs[Outcome] = Jobs(THREADS, "end")  # hung calls may take all of the others
        self._watch = Watch(engine, str(context.home), runtime)
        self._bells = Bells()
        self._guard = DiskGuard(self._tasks, self._work.signal_keeper)
        self._group = TasksGroup()
        self._image_disk = ImageDisk(context.settings)
        self._boot_id = boot_id()
        self._changed = True
        self._urgent = False  # the change is one that others wait for
        self._published_s = 0.0
        self._compared: TaskWant | None = None
        self._engine_was_there = False
        self._lapsed_at_s = 0.0
        for attempt in recover(self._tasks, self._store.phases(), self._boot_id):
            self._adopt(attempt)

    # -------------------------------------------------------------- the loop

    @property
    def _sources(self) -> tuple[_Source, ...]:
        mine = (self._jobs, self._ends, self._watch, self._bells, self._guard)
        return (*mine, *self._supply.sources)

    def descriptors(self) -> Iterable[int]:
        return [source.fileno() for source in self._sources]

    def beat(self, now_s: float) -> None:
        self._watch.beat(now_s, idle=not self._attempts)
        self._image_disk.beat(self._watch.about, now_s)
        disk_full = self._supply.capacity().disk_full
        if self._debug.is_due(now_s, disk_full=disk_full) and not self._jobs.is_busy(DEBUG):
            self._jobs.submit(DEBUG, self._work.trim_debug)
        self._supply.beat(self._watch.about, self._jobs, now_s)
        for attempt in list(self._attempts.values()):
            self._tend(attempt, now_s)
        self._decide(now_s)
        self._publish()

    def wake(self, ready: set[int], now_s: float) -> None:
        runs = any(attempt.step in ALIVE for attempt in self._attempts.values())
        self._group.follow(self._bus.inbox.fresh(HostLoad, now_s), is_used=runs)
        self._take_results(ready, now_s)
        self._decide(now_s)
        if self._changed and (self._urgent or now_s >= self._published_s + APART_S):
            self._publish()

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self._image_disk.close()
        self._store.close()

    def _take_results(self, ready: set[int], now_s: float) -> None:
        for source, take in (
            (self._guard, self._take_full),
            (self._jobs, self._take_outcomes),
            (self._ends, self._take_endings),
            (self._watch, self._take_news),
            (self._bells, self._take_bells),
        ):
            if source.fileno() in ready:
                take(now_s)
        self._supply.take(ready, now_s)

    def _take_full(self, now_s: float) -> None:
        for full in self._guard.full():
            if full.key in self._attempts:
                self._stop(self._attempts[full.key], full.said, full.at_ns)

    def _take_outcomes(self, now_s: float) -> None:
        for lane, result in self._jobs.results():
            if isinstance(result, Outcome):
                self._finish(lane, result, now_s)
            else:
                result()

    def _take_endings(self, now_s: float) -> None:
        for lane, outcome in self._ends.results():
            if isinstance(lane, Ending):
                self._finish(lane.key, outcome, now_s)

    def _take_news(self, now_s: float) -> None:
        for news in self._watch.results(now_s):
            if isinstance(news, EngineIs):
                self._engine_is(news)
            elif isinstance(news, Listed):
                self._compare(news)
            else:
                self._died(news)

    def _take_bells(self, now_s: float) -> None:
        for key in self._bells.rung():
            if key in self._attempts:
                self._read_record(self._attempts[key])

    def _decide(self, now_s: float) -> None:
        self._follow_wants(now_s)
        self._supply.decide(self._watch.about, now_s)

    def _publish(self) -> None:
        self._changed = self._urgent = False
        self._published_s = time.monotonic()
        about = self._watch.about
        self._bus.publish(
            TaskState(
                at_s=time.monotonic(),
                engine=messages.Engine(
                    available=about is not None,
                    detail=self._watch.detail,
                    version=about.version if about else "",
                    runtimes=about.runtimes if about else (),
                    disk_free_bytes=self._image_disk.disk.free_bytes,
                    disk_total_bytes=self._image_disk.disk.total_bytes,
                ),
                tasks=tuple(a.held() for a in self._attempts.values()),
                capacity=self._supply.capacity(),
                cpu_weight_pct=self._group.pct,
                alerts=self._image_disk.alerts,
                cleared=self._image_disk.cleared,
            )
        )

    # -------------------------------------------------------------- attempts

    def _adopt(self, attempt: Attempt) -> None:
        self._attempts[attempt.key] = attempt
        self._supply.adopt(attempt)
        if attempt.step in ALIVE:
            self._bells.hang(attempt.key, attempt.directory)
        if attempt.step is Step.DONE:
            self._store.put(row(attempt.held(), attempt.spec.accepted_unix_s, attempt.report))
            self._perform(attempt, Instruction.CLEAN)
        if attempt.step is Step.COLLECTING:
            attempt.enter(attempt.phase, time.time())
            self._perform(attempt, Instruction.COLLECT)
        if attempt.step is Step.STOPPING:
            self._perform(attempt, Instruction.STOP)
        if attempt.step in ALIVE:
            self._read_record(attempt)
        self._changed = True

    def _apply(self, attempt: Attempt, event: Event) -> None:
        """Move, note the new phase, do what follows."""
        before, phase = attempt.step, attempt.phase
        attempt.step, instruction = core.move(attempt.key.directory, before, event)
        if attempt.step is before and instruction is None:
            return
        log.debug("%s: %s -> %s (%s)", attempt.key.directory, before, attempt.step, event)
        if attempt.step in (Step.RUNNING, Step.DONE):
            log.info("%s is %s", attempt.key.directory, attempt.phase)
        self._changed = True
        self._urgent = self._urgent or attempt.step in TOLD_AT_ONCE
        if attempt.report is None and attempt.step in core.PHASES:
            attempt.enter(attempt.phase, self._entered_unix_s(attempt))
        elif attempt.report is not None:
            attempt.enter(attempt.report.phase, attempt.report.finished_unix_s)
        if event is Event.STARTED:
            self._guard.follow(attempt)
        if attempt.step is Step.COLLECTING:
            self._guard.leave(attempt.key)
            self._bells.take_down(attempt.key)
        if instruction is not None:
            self._perform(attempt, instruction)
        is_final = event is Event.COLLECTED  # its report, and so its phase, came before
        if is_final or attempt.phase not in (phase, TaskPhase.COLLECTING):
            self._store.put(row(attempt.held(), attempt.spec.accepted_unix_s, attempt.report))

    def _entered_unix_s(self, attempt: Attempt) -> float:
        started = attempt.record.started
        if attempt.phase is TaskPhase.RUNNING and started is not None:
            return started.unix_ns / 1e9
        return time.time()

    def _perform(self, attempt: Attempt, instruction: Instruction) -> None:
        work: dict[Instruction, Callable[[Attempt], Outcome]] = {
            Instruction.PREPARE: self._making.prepare,
            Instruction.START: self._work.start,
            Instruction.COLLECT: self._work.collect,
            Instruction.CLEAN: self._work.clean,
        }
        if instruction is Instruction.STOP:
            is_hard = attempt.stop is not None and attempt.stop.is_hard
            attempt.stop_stage = 2 if is_hard else 1
            grace_s = HARD_STOP_S if is_hard else attempt.spec.stop_grace_s + SENT_WITHIN_S
            attempt.stop_due_s = time.monotonic() + grace_s
            self._end(attempt, self._work.stop)
        elif instruction is Instruction.COLLECT and self._is_called_off(attempt):
            self._end(attempt, self._work.call_off)
        else:
            self._submit(attempt, work[instruction])

    def _submit(self, attempt: Attempt, job: Callable[[Attempt], Outcome]) -> None:
        self._jobs.submit(attempt.key, partial(guarded, job, attempt))

    def _end(self, attempt: Attempt, job: Callable[[Attempt], Outcome]) -> None:
        """What ends it never waits for a call that may hang in the engine."""
        self._ends.submit(Ending(attempt.key), partial(guarded, job, attempt))

    def _is_called_off(self, attempt: Attempt) -> bool:
        """It never ran and never will: no start was asked, or it was settled."""
        is_stopped = attempt.stop is not None and attempt.record.started is None
        return is_stopped and self._jobs.is_busy(attempt.key)

    def _used_bytes(self, key: TaskKey) -> int:
        return self._guard.used_bytes(key)

    def _is_busy(self, attempt: Attempt) -> bool:
        return self._jobs.is_busy(attempt.key) or self._ends.is_busy(Ending(attempt.key))

    def _finish(self, lane: object, outcome: Outcome, now_s: float) -> None:
        """A job has ended: keep what it learned, then move."""
        attempt = self._attempts.get(lane) if isinstance(lane, TaskKey) else None
        if attempt is None:
            return
        attempt.lane_idle_since_s = now_s
        _learn(attempt, outcome)
        if outcome.failed:
            log.error("%s: %s", attempt.key.directory, outcome.failed)
            attempt.detail, attempt.retry_at_s = outcome.failed, now_s + DISK_RETRY_S
            attempt.failures += 1
        if outcome.failure and outcome.failure.sentence is sentences.GPU_DRIVER_MISSING:
            self._supply.cards.has_driver = False  # the next one would fail as this one did
        _set_times(attempt, outcome, now_s)
        if outcome.event is None:
            return
        attempt.refusals += outcome.refused
        if outcome.event is Event.CLEANED:
            self._supply.egress.release(attempt.key)
        if outcome.event is Event.ENDED:
            attempt.record = read_run(attempt.directory)
        if outcome.event is Event.PREPARED and attempt.step is Step.PREPARING:
            self._bells.hang(attempt.key, attempt.directory)
            self._supply.use(attempt.spec.image)
        attempt.waits_for = outcome.waits_for
        self._urgent = self._urgent or attempt.waits(Wait.INPUTS)  # master_link fetches them
        self._apply(attempt, outcome.event)

    def _read_record(self, attempt: Attempt) -> None:
        """The keeper may have written: its word is the truth."""
        if attempt.step not in ALIVE:
            return
        attempt.record_due_s = time.monotonic() + RECORD_EACH_S
        try:
            attempt.record = record = read_run(attempt.directory)
        except OSError as err:  # of the disk, and of this attempt alone
            log.error("%s: its record can't be read now: %s", attempt.key.directory, err)
            return
        if record.started is not None and attempt.step is Step.STARTING:
            self._submit(attempt, self._work.seal)
            self._apply(attempt, Event.STARTED)
        if record.ended is not None or record.failed_errno is not None:
            self._apply(attempt, Event.ENDED)
        elif record.started is None or self._is_of_this_boot(record.started):
            return
        elif not self._is_busy(attempt):
            self._submit(attempt, partial(self._work.autopsy, present=False))

    def _is_of_this_boot(self, started: Started) -> bool:
        return started.boot_id in ("", self._boot_id)  # "": not to be had in gVisor

    # -------------------------------------------------------------- wants

    def _follow_wants(self, now_s: float) -> None:
        link = self._bus.inbox.fresh(LinkState, now_s)
        if link is not None:
            self._changed = self._changed or link.trust_level != self._supply.trust_level
            self._supply.trust_level, self._making.node_id = link.trust_level, link.node_id
        want = self._bus.inbox.fresh(TaskWant, now_s)
        if want is self._compared and not self._changed:
            return
        self._compared = want
        for decision in wants.compare(want, self._attempts, now_s):
            if isinstance(decision, wants.Take):
                for attempt in recover(
                    self._tasks, self._store.phases(), self._boot_id, only=decision.key
                ):
                    self._adopt(attempt)
            elif decision.key not in self._attempts:
                continue  # its spec is not there
            elif isinstance(decision, wants.End):
                self._stop(self._attempts[decision.key], decision.said)
            else:
                self._apply(self._attempts[decision.key], Event.UNWANTED)
                del self._attempts[decision.key]

    def _stop(
        self, attempt: Attempt, said: Said[TaskPhase], at_ns: int | None = None
    ) -> None:
        if attempt.stop is None and attempt.step in (Step.WAITING, *core.ACTIVE):
            ago_ns = time.monotonic_ns() - at_ns if at_ns else 0
            attempt.stop = Stop.because(
                said, time.monotonic_ns() - ago_ns, self._boot_id, time.time_ns() - ago_ns
            )
            self._apply(attempt, Event.STOP_WANTED)

    # -------------------------------------------------------------- watching

    def _tend(self, attempt: Attempt, now_s: float) -> None:
        """What time asks of one attempt."""
        if attempt.waits(Wait.INPUTS):
            self._look_for_inputs(attempt)
        if attempt.step is Step.COLLECTING and not self._is_busy(attempt):
            if now_s < attempt.retry_at_s:
                return
            self._perform(attempt, Instruction.COLLECT)  # the one before found no room
        if now_s >= attempt.record_due_s:
            self._read_record(attempt)
        if attempt.step not in ALIVE:
            return
        started = attempt.record.started
        if started is not None and self._is_of_this_boot(started):
            if attempt.began_s is None:
                attempt.began_s = began_s(started, now_s, time.time())
            if now_s - attempt.began_s >= attempt.spec.timeout_s:
                said = sentences.TIMED_OUT.say(timeout_s=f"{attempt.spec.timeout_s:g}")
                self._stop(attempt, said)
            self._guard.follow(attempt)
            sample(attempt, self._guard.used_bytes(attempt.key))
            sample_gpus(attempt, self._supply.cards)
        if attempt.step is Step.STOPPING and now_s >= attempt.stop_due_s:
            self._harder(attempt, now_s)

    def _harder(self, attempt: Attempt, now_s: float) -> None:
        """Its grace is over: the keeper's hard stop, then SIGKILL."""
        attempt.stop_due_s = now_s + HARD_STOP_S
        first, attempt.stop_stage = attempt.stop_stage == 1, 2
        if first:
            self._end(attempt, self._work.hard_stop)
        elif not self._ends.is_busy(lane := Ending(attempt.key, is_kill=True)):
            self._ends.submit(lane, partial(guarded, self._work.kill, attempt))

    def _look_for_inputs(self, attempt: Attempt) -> None:
        if self._jobs.is_busy(attempt.key):
            return
        try:
            if prepare.missing(attempt.directory, attempt.spec):
                return
        except prepare.InputError as err:
            attempt.failure = err.said
            self._apply(attempt, Event.PREPARE_FAILED)
            return
        attempt.waits_for = None
        self._apply(attempt, Event.ARRIVED)

    # -------------------------------------------------------------- the engine

    def _engine_is(self, news: EngineIs) -> None:
        is_there = news.about is not None
        if is_there == self._engine_was_there:
            return
        log.warning(
            "the container engine %s", "is there" if is_there else f"is away: {news.detail}"
        )
        self._engine_was_there = self._work.engine_is_there = is_there
        self._changed = True
        self._supply.cards.has_driver = True  # it is asked anew after each start of the engine
        if not is_there:
            self._engine_lapsed()

    def _engine_lapsed(self) -> None:
        """It went away: without live-restore it will end what it finds."""
        self._lapsed_at_s = time.monotonic()
        for attempt in self._attempts.values():
            if attempt.step in ALIVE:
                attempt.engine_lapsed = True

    def _compare(self, listed: Listed) -> None:
        """The engine's list against what is held."""
        by_key = {one.key: one for one in listed.seen}
        for attempt in list(self._attempts.values()):
            found = by_key.get(attempt.key)
            if found is not None:
                attempt.container_id = attempt.container_id or found.container_id
                attempt.may_have_container = True
            if self._is_busy(attempt) or attempt.lane_idle_since_s >= listed.began_s:
                continue  # the list is older than what was done since
            if attempt.step in ALIVE and (found is None or found.state in _ENDED_STATES):
                self._submit(attempt, partial(self._work.autopsy, present=found is not None))
            elif attempt.step in ALIVE and listed.began_s > self._lapsed_at_s:
                attempt.engine_lapsed = False  # it came through
            elif attempt.step is Step.DONE:
                self._perform(attempt, Instruction.CLEAN)
        for one in listed.seen:
            if self._is_leftover(one.key):
                self._remove_leftover(one.container_id)

    def _is_leftover(self, key: TaskKey) -> bool:
        """Of a life that was killed, or of a call that took effect late."""
        held = self._attempts.get(key)
        if held is not None:
            return held.step is Step.CLEANED
        return _has_ended(self._tasks, key)

    def _remove_leftover(self, container: str) -> None:
        """The directories prove that it ended."""
        if not self._jobs.is_busy(container):
            self._jobs.submit(container, partial(self._work.remove_leftover, container))

    def _died(self, news: Died) -> None:
        if news.key is None:  # the stream broke: it may be back before the next ping
            self._engine_lapsed()
        attempt = self._attempts.get(news.key) if news.key else None
        if attempt is not None:
            self._read_record(attempt)
            if attempt.step in ALIVE:
                self._watch.look_soon()


def _set_times(attempt: Attempt, outcome: Outcome, now_s: float) -> None:
    """When it is tried again, or stopped harder."""
    if outcome.event in (Event.NEVER_RAN, Event.ENGINE_LOST):
        attempt.retry_at_s = now_s + RETRY_S
    if outcome.event is Event.NO_ROOM:
        attempt.retry_at_s = now_s + DISK_RETRY_S
    if outcome.stop_signal and attempt.step is Step.STOPPING and attempt.stop_stage == 1:
        attempt.stop_due_s = now_s + attempt.spec.stop_grace_s  # from when it was sent


def _learn(attempt: Attempt, outcome: Outcome) -> None:
    for name in (
        "container_id", "image_digest", "image", "stop_signal", "pull_s", "detail", "grant",
    ):  # fmt: skip
        value = getattr(outcome, name)
        if value is not None:
            setattr(attempt, name, value)
    attempt.failure = outcome.failure or attempt.failure
    attempt.loss = outcome.loss or attempt.loss
    attempt.report = outcome.report or attempt.report
    if outcome.event in (Event.PREPARED, Event.ENGINE_LOST):  # it may be made yet
        attempt.may_have_container = True


def _has_ended(tasks: Path, key: TaskKey) -> bool:
    places = (tasks, tasks.parent / taskdir.KEPT)
    return any((place / key.directory / taskdir.REPORT).exists() for place in places)


_ENDED_STATES = ("exited", "dead", "created", "removing")


def _allow_descriptors() -> None:
    """As many as the system lets us have: a deep output holds one a level, in each thread."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    _allow_descriptors()
    return service.run(NAME, CAPABILITIES, READS, Executor)
