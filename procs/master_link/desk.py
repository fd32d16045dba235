"""The attempts of this node: what the master assigns and cancels, what is let go and kept.

Decisions are core.py's and shared/admission.py's; disk and database work runs in threads. An
assignment that has begun is finished whatever becomes of its caller.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from procs.master_link import assignment, core, reports, wire
from procs.master_link.assignment import Malformed
from procs.master_link.core import Again, Attempt, Invalid, Same, Stage, Take
from procs.master_link.disk import Disk
from procs.master_link.news import News
from procs.master_link.records import Records
from procs.master_link.store import StoreFaultError
from shared import sentences
from shared.admission import BUSY_RETRY_S, Node, Refused, refusal
from shared.messages import NodePhase, StopReason, TaskPhase, TaskState, WantedTask
from shared.pb import hivemind_pb2 as pb
from shared.settings import Settings
from shared.taskdir import TASK_ID, Spec, TaskKey

EXECUTOR_AWAY_RETRY_S = 5.0  # it is back within two seconds
KEPT_BYTES = 2 * 2**30
LARGE_BYTES = 64 * 1024  # to check more than this would stop the beat
AFTER_ANSWER_S = 0.001  # the master has its answer before the others here hear of the task
MOST_REASON = 1000  # characters of the master's reason: they ride on the bus
T = TypeVar("T")

log = logging.getLogger("master_link")


@dataclass
class Standing:
    """The node as the master and the owner see it; the session writes it, all read it."""

    node_id: str = ""
    trust_level: int = 0
    desired: NodePhase = NodePhase.READY
    phase: NodePhase = NodePhase.READY
    reason: str = ""


@dataclass
class Desk:
    """All attempts that are held, being let go, or delivered again; the rest is in link.db."""

    settings: Settings
    disk: Disk
    records: Records
    news: News
    standing: Standing
    changed: Callable[[], None]
    attempts: dict[TaskKey, Attempt] = field(default_factory=dict)
    _committing: set[TaskKey] = field(default_factory=set)
    _settling: set[TaskKey] = field(default_factory=set)
    _running: set[asyncio.Task[Any]] = field(default_factory=set)
    _last_stops: tuple[str, ...] = ()  # silence lifts no stop
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    # -------------------------------------------------------------- start and end

    async def load(self) -> None:
        """What is held, from the directories; what is known of it, from the database."""
        specs = await asyncio.to_thread(self.disk.accepted)
        kept = await asyncio.to_thread(self.disk.kept_keys)
        living = (Stage.HELD, Stage.DELIVERED, Stage.KEPT)
        rows = await self.records.run(self.records.store.attempts, *living)
        known = {attempt.key: attempt for attempt in rows}
        changed = [await self._found(spec, known) for spec in specs.values()]
        moved = [a for a in known.values() if _moved(a, specs.keys(), kept)]
        for attempt in moved:
            attempt.size_bytes = await asyncio.to_thread(self.disk.kept_bytes, attempt.key)
        changed += moved
        for key in kept - known.keys() - specs.keys():
            changed.append(await asyncio.to_thread(self.disk.adopt, key))
        self.attempts.update({a.key: a for a in known.values() if a.redeliver})
        await self.records.save(*changed)

    async def _found(self, spec: Spec, known: dict[TaskKey, Attempt]) -> Attempt:
        attempt = known.get(spec.key)
        if attempt is None:
            early_cancel = self.records.store.early_cancel
            early = await self.records.run(early_cancel, spec.key, spec.accepted_unix_s)
            attempt = _new(spec, early)
        if attempt.stage is Stage.KEPT:
            attempt.stage = Stage.DELIVERED
        attempt.inputs = spec.inputs
        newer = (key for key in self.attempts if key.task_id == spec.task_id)
        for key in newer:  # the directories come in order: what stands there is older
            self._supersede(key, spec.key)
        self.attempts[spec.key] = attempt
        return attempt

    async def close(self) -> None:
        """Finish what has begun."""
        while self._running:
            await asyncio.wait(self._running)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _lock(self, task_id: str) -> asyncio.Lock:
        """One thing at a time for a task: the server and the channel may bring the same."""
        return self._locks.setdefault(task_id, asyncio.Lock())

    # -------------------------------------------------------------- AssignTask

    async def assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        return await asyncio.shield(self._spawn(self._assign(request)))

    async def _assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        try:
            return await self._decide(request, await self._read(request))
        except Malformed as err:
            return _refused(request, Refused(err.said))
        except StoreFaultError as err:
            log.error("%s is not taken: %s", wire.key_of(request).directory, err)
            said = sentences.ASSIGNMENT_NOT_STORED.say(words=err)
            return _refused(request, Refused(said, BUSY_RETRY_S))

    async def _read(self, request: pb.TaskAssignmentRequest) -> Spec:
        args = request, self.settings.task_image, time.time()
        if request.ByteSize() > LARGE_BYTES:
            return await asyncio.to_thread(assignment.read, *args)
        return assignment.read(*args)

    async def _decide(
        self, request: pb.TaskAssignmentRequest, spec: Spec
    ) -> pb.TaskAssignmentResponse:
        async with self._lock(spec.task_id):
            known, early = await self._known(spec.key)
            match core.decide(spec.key, spec.digest, known, time.time()):
                case Invalid(said):
                    return _refused(request, Refused(said))
                case Same():
                    return _accepted(request)
                case Again():
                    return await self._again(request, next(a for a in known if a.key == spec.key))
                case Take(supersedes):
                    return await self._take(request, spec, supersedes, early)

    async def _known(self, key: TaskKey) -> tuple[list[Attempt], str | None]:
        """Every attempt of the key's task, and why `key` was cancelled before it came."""
        rows, early = await self.records.run(self.records.store.of_task, key, time.time())
        known = {attempt.key: attempt for attempt in rows}
        known.update(self.records.unsaved(key.task_id))
        known.update({k: a for k, a in self.attempts.items() if k.task_id == key.task_id})
        return list(known.values()), early

    async def _again(
        self, request: pb.TaskAssignmentRequest, attempt: Attempt
    ) -> pb.TaskAssignmentResponse:
        if not await asyncio.to_thread(self.disk.is_complete, attempt.key):
            said = sentences.DELIVERED_BEFORE.say(attempt=attempt.key.attempt)
            return _refused(request, Refused(said))
        attempt.redeliver = True
        await self.records.save(attempt)
        self.attempts[attempt.key] = attempt
        self.changed()
        return _accepted(request)

    async def _take(
        self,
        request: pb.TaskAssignmentRequest,
        spec: Spec,
        supersedes: tuple[TaskKey, ...],
        early: str | None,
    ) -> pb.TaskAssignmentResponse:
        attempt = _new(spec, early)
        if attempt.stop is None and (refused := self._refusal(spec)) is not None:
            return _refused(request, refused)
        self._committing.add(spec.key)
        try:
            await asyncio.to_thread(self.disk.commit, spec, request)
        except OSError as err:
            log.error("%s can't be stored: %s", spec.key.directory, err)
            said = sentences.ASSIGNMENT_NOT_STORED.say(words=err.strerror)
            return _refused(request, Refused(said, BUSY_RETRY_S))
        finally:
            self._committing.discard(spec.key)
        older = [self._supersede(key, spec.key) for key in supersedes]
        self.attempts[spec.key] = attempt
        for one in older:  # soon is enough: a start finds the same from the directories
            self.records.save_later(one)
        asyncio.get_running_loop().call_later(AFTER_ANSWER_S, self.changed)
        return _accepted(request)

    def _supersede(self, key: TaskKey, by: TaskKey) -> Attempt:
        older = self.attempts[key]
        if older.stage is Stage.HELD and older.stop is None:
            older.stop = StopReason.SUPERSEDED
            older.stop_detail = f"attempt {by.attempt}"
        return older

    def _refusal(self, spec: Spec) -> Refused | None:
        state = self.news.task_state()
        if state is None:
            return Refused(sentences.EXECUTOR_AWAY.say(), EXECUTOR_AWAY_RETRY_S)
        node = Node(
            phase=self.standing.phase,
            phase_reason=self.standing.reason,
            trust_level=self.standing.trust_level,
            capacity=state.capacity,
            held=self.held,
            allowed_images=self.settings.allowed_images,
            egress_allowed=self.settings.egress,
            egress_ready=self.news.egress_ready(),
            sandbox=self.settings.sandbox,
        )
        return refusal(spec, node)

    # -------------------------------------------------------------- CancelTask, forget

    async def cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        return await asyncio.shield(self._spawn(self._cancel(request)))

    async def _cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        key = wire.key_of(request)
        response = pb.TaskCancelResponse(task_id=key.task_id, attempt=key.attempt)
        if not TASK_ID.fullmatch(key.task_id) or key.attempt < 1:
            return response
        reason = request.reason[:MOST_REASON]
        async with self._lock(key.task_id):
            known, _ = await self._known(key)
            attempt = next((a for a in known if a.key == key), None)
            if attempt is None:
                remember = self.records.store.remember_cancel
                await self.records.run(remember, key, reason, time.time())
                return response
            await self.stop(attempt, StopReason.CANCELLED, reason)
            response.known = True
            response.state = wire.STATES[attempt.final or self.news.phase(key)]
        return response

    async def stop(self, attempt: Attempt, why: StopReason, detail: str) -> None:
        """The attempt should end; the first reason stays, but for the master's forgetting."""
        ended = attempt.stage is not Stage.HELD or attempt.stop is StopReason.FORGOTTEN
        if ended or (why is not StopReason.FORGOTTEN and not self._can_stop(attempt)):
            return
        attempt.stop, attempt.stop_detail = why, detail
        try:
            await self.records.save(attempt)
        finally:
            self.changed()

    def _can_stop(self, attempt: Attempt) -> bool:
        return attempt.stop is None and not self.news.phase(attempt.key).is_final

    async def forget(self, key: TaskKey) -> None:
        """The master has recorded its end: stop, clean, deliver nothing."""
        attempt = self.attempts.get(key)
        if attempt is None:
            return
        if attempt.redeliver:
            attempt.redeliver = False
            await self.records.save(attempt)
            self._leave(attempt)
            self.changed()
        await self.stop(attempt, StopReason.FORGOTTEN, "")

    # -------------------------------------------------------------- what is wanted, and the end

    @property
    def held(self) -> int:
        """How many the node has, with those that it is just accepting."""
        return len(self.undelivered()) + len(self._committing)

    def undelivered(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.undelivered]

    def want(self) -> tuple[WantedTask, ...]:
        """Each attempt that should be held, and which of them should end."""
        owner = self.news.owner()
        stops = owner.stopped_tasks if owner is not None else self._last_stops
        self._last_stops = stops
        return core.wanted(self.attempts.values(), self.news.held, stops)

    def told(self, tasks: tuple[WantedTask, ...], now_s: float) -> None:
        """`tasks` goes out in the message of `now_s`: what it lacks, the executor may let go."""
        named = {TaskKey(task.task_id, task.attempt) for task in tasks}
        for key, attempt in self.attempts.items():
            if key not in named:
                attempt.dropped_at_s = min(attempt.dropped_at_s, now_s)

    async def delivered(self, attempt: Attempt, final: TaskPhase, result: bytes) -> None:
        """The master has acknowledged the result."""
        earned = reports.of_task(pb.TaskResultRequest.FromString(result))
        attempt.delivered_unix_s, attempt.final = time.time(), final
        attempt.redeliver = False
        if attempt.stage is Stage.HELD:
            attempt.stage = Stage.DELIVERED
        await self.records.save(attempt, earned=earned)
        self._leave(attempt)
        self.changed()

    def _leave(self, attempt: Attempt) -> None:
        if attempt.stage in (Stage.KEPT, Stage.GONE):
            self.attempts.pop(attempt.key, None)
            self.news.forget(attempt.key)

    def settle(self, state: TaskState) -> None:
        """Move away what the executor has let go."""
        for attempt in self.attempts.values():
            released = not attempt.redeliver and core.is_released(attempt, state)
            if released and attempt.key not in self._settling:
                self._settling.add(attempt.key)
                self._spawn(self._settle(attempt))

    async def _settle(self, attempt: Attempt) -> None:
        try:
            async with self._lock(attempt.key.task_id):
                if attempt.redeliver:
                    return
                is_owed = attempt.stage is Stage.HELD
                size_bytes = await asyncio.to_thread(self.disk.put_away, attempt.key, is_owed)
                if is_owed:  # the master forgot it before we heard that it has the result
                    attempt.delivered_unix_s = time.time()
                if size_bytes is None:
                    attempt.stage = Stage.GONE
                else:
                    attempt.stage, attempt.size_bytes = Stage.KEPT, size_bytes
                self.records.save_later(attempt)  # a start puts right what a crash leaves
                self._leave(attempt)
        except OSError as err:
            log.warning("%s can't be put away: %s", attempt.key.directory, err)
        finally:
            self._settling.discard(attempt.key)

    async def trim(self, now_unix_s: float) -> None:
        """Let go of what was kept for a day, or past the room for it, the oldest first."""
        try:
            await self._trim(now_unix_s)
        except OSError as err:
            log.warning("what is kept can't be trimmed: %s", err)

    async def _trim(self, now_unix_s: float) -> None:
        await self.records.flush()
        kept = await self.records.run(self.records.store.kept)
        room = KEPT_BYTES
        for attempt in reversed(kept):
            room -= attempt.size_bytes
            if room < 0 or now_unix_s - attempt.delivered_unix_s >= core.DAY_S:
                async with self._lock(attempt.key.task_id):
                    if attempt.key not in self.attempts:
                        await asyncio.to_thread(self.disk.discard, attempt.key)
                        attempt.stage = Stage.GONE
                        await self.records.save(attempt)
        await self.records.run(self.records.store.trim, now_unix_s)


def _new(spec: Spec, early: str | None) -> Attempt:
    attempt = Attempt(spec.key, spec.digest, spec.accepted_unix_s, inputs=spec.inputs)
    if early is not None:
        attempt.stop, attempt.stop_detail = StopReason.CANCELLED, early
    return attempt


def _moved(attempt: Attempt, held: Container[TaskKey], kept: set[TaskKey]) -> bool:
    """Correct a row that a crash left behind its directory; True if it was."""
    right = attempt.stage
    if attempt.key in held:
        return False
    if attempt.stage in (Stage.HELD, Stage.DELIVERED):
        right = Stage.KEPT if attempt.key in kept else Stage.GONE
    elif attempt.stage is Stage.KEPT and attempt.key not in kept:
        right, attempt.redeliver = Stage.GONE, False
    changed, attempt.stage = right is not attempt.stage, right
    return changed


def _accepted(request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
    return pb.TaskAssignmentResponse(
        task_id=request.task_id, attempt=request.attempt, accepted=True
    )


def _refused(request: pb.TaskAssignmentRequest, why: Refused) -> pb.TaskAssignmentResponse:
    response = pb.TaskAssignmentResponse(
        task_id=request.task_id,
        attempt=request.attempt,
        refusal=wire.REFUSALS[why.said.code],
        reason=why.said.text,
    )
    if why.retry_after_s:
        response.retry_after.CopyFrom(wire.duration(why.retry_after_s))
    return response
