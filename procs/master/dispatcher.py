"""The master's own loop: finds lost nodes, places what waits, sends what is not answered.

It compares what the database wants with what nodes have said, at every change and once a second;
so a start after a crash is nothing special. What to do is core's to say.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import sqlalchemy as sa

from procs.master import bells, core, node_records, task_records
from procs.master.bells import Bells
from procs.master.database import Database
from procs.master.files import Files
from procs.master.grpc_edge import Unanswered, Workers
from procs.master.task_records import Key
from shared.pb import hivemind_pb2 as pb

log = logging.getLogger("master")

TICK_S = 1.0
PLACEMENT = "placement"  # the bell that wakes the loop
T = TypeVar("T")
FOR_GOOD = frozenset({pb.REFUSAL_TOO_LARGE, pb.REFUSAL_FORBIDDEN})


class Dispatcher:
    """Gives attempts to nodes and takes them back."""

    def __init__(
        self,
        database: Database,
        files: Files,
        workers: Workers,
        bells_: Bells,
        lost_after_s: float = core.LOST_AFTER_S,
    ) -> None:
        self._database, self._files = database, files
        self._workers, self._bells = workers, bells_
        self._lost_after_s = lost_after_s
        self._started_s = time.monotonic()
        self._heard_s: dict[str, float] = {}  # by node; silence counts from our own start
        self._busy_until_s: dict[str, float] = {}  # by node
        self._resend_s: dict[tuple[str, Key], float] = {}
        self._failures: dict[tuple[str, Key], int] = {}
        self._calls: dict[tuple[str, Key], asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    def heard(self, node_id: str) -> None:
        self._heard_s[node_id] = time.monotonic()

    def channel_opened(self, node_id: str) -> None:
        """What could not be sent may be sent at once."""
        self._resend_s.clear()
        self._busy_until_s.pop(node_id, None)
        self.wake()

    def in_background(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """Run it beside; the task is kept, so that it is not collected while it runs."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def wake(self) -> None:
        self._bells.ring(PLACEMENT)

    async def run(self) -> None:
        await self._drop_old_secrets()
        while True:
            bell = self._bells.listen(PLACEMENT)
            await self._lose_silent_nodes()
            await self._place()
            await self._send()
            self._forget_past()
            await bells.wait(bell, TICK_S)

    async def close(self) -> None:
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)

    async def ended(self, task_id: str) -> None:
        """Something may have ended the task: its secrets go, its followers look."""
        row = await self._database.run(task_records.task, task_id)
        if row is not None and row["state"]:
            await asyncio.to_thread(self._files.drop_secrets, task_id)
        self._bells.ring(task_id)
        self.wake()

    # -------------------------------------------------------------- each round

    async def _drop_old_secrets(self) -> None:
        live = await self._database.run(task_records.live_tasks)
        await asyncio.to_thread(self._files.drop_secrets_but, live)

    async def _lose_silent_nodes(self) -> None:
        now_s = time.monotonic()
        for row in await self._database.run(node_records.nodes):
            heard_s = self._heard_s.get(row["node_id"], self._started_s)
            if row["lost"] or now_s - heard_s < self._lost_after_s:
                continue
            log.warning("node %s is lost: silent for %.0f s", row["node_id"], now_s - heard_s)
            keys = await self._database.run(node_records.lose, row["node_id"], time.time())
            for key in keys:
                await self.ended(key.task_id)

    async def _place(self) -> None:
        now_s = time.monotonic()
        put_off = frozenset(n for n, until_s in self._busy_until_s.items() if until_s > now_s)
        waiting, nodes = await self._database.run(_to_place, put_off)
        if not waiting:
            return
        offers, hopeless = core.place(waiting, nodes)
        for offer in offers:
            key = Key(offer.task_id, offer.attempt)
            await self._database.run(task_records.offer, key, offer.node_id)
            self._bells.ring(key.task_id)
        for case in hopeless:
            key = Key(case.task_id, case.attempt)
            await self._database.run(task_records.refuse, key, case.reason, time.time())
            await self.ended(key.task_id)

    async def _send(self) -> None:
        offered, to_cancel = await self._database.run(_to_send)
        for row in to_cancel:
            key = Key(row["task_id"], row["attempt"])
            self._start("cancel", key, self._cancel(key, row["node_id"], row["cancel_reason"]))
        for row in offered:
            if row["cancel_reason"] is None:
                key = Key(row["task_id"], row["attempt"])
                self._start("assign", key, self._assign(key, row["node_id"]))

    def _start(self, kind: str, key: Key, call: Coroutine[None, None, bool]) -> None:
        """Run a call in the background, unless it runs already or failed a moment ago."""
        name = (kind, key)
        if name in self._calls or self._resend_s.get(name, 0.0) > time.monotonic():
            call.close()
            return
        self._calls[name] = asyncio.create_task(self._watch(name, call))

    async def _watch(self, name: tuple[str, Key], call: Coroutine[None, None, bool]) -> None:
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        delay_s = core.resend_delay_s(failures)
        try:
            if await call:
                self._failures.pop(name, None)
                delay_s = 0.0
            else:  # known and stopping: its result ends it, ask again only later
                delay_s = core.LAST_RESEND_S
        except Unanswered as err:
            log.info("%s %s: not answered: %s", name[0], name[1], err)
        finally:
            self._resend_s[name] = time.monotonic() + delay_s
            del self._calls[name]
            self.wake()

    def _forget_past(self) -> None:
        now_s = time.monotonic()
        self._resend_s = {n: at_s for n, at_s in self._resend_s.items() if at_s > now_s}
        self._failures = {n: f for n, f in self._failures.items() if self._is_open(n)}

    def _is_open(self, name: tuple[str, Key]) -> bool:
        return name in self._calls or name in self._resend_s

    # -------------------------------------------------------------- the calls

    async def _assign(self, key: Key, node_id: str) -> bool:
        """Offer the attempt to its node and note the answer."""
        task, node = await self._database.run(_task_and_node, key, node_id)
        request = pb.TaskAssignmentRequest.FromString(task["spec"])
        request.attempt = key.attempt
        secrets = await asyncio.to_thread(self._files.secrets, key.task_id)
        request.secrets.update(secrets)
        answer = await self._workers.assign(node_id, node["task_endpoint"], request)
        if (answer.task_id, answer.attempt) != key:
            raise Unanswered("the answer names another attempt")
        if answer.accepted:
            await self._database.run(task_records.accept, key, node_id)
        else:
            await self._refused(key, node_id, answer)
        await self.ended(key.task_id)
        return True

    async def _refused(self, key: Key, node_id: str, answer: pb.TaskAssignmentResponse) -> None:
        kind = pb.Refusal.Name(answer.refusal) if answer.refusal in pb.Refusal.values() else "?"
        reason = f"{kind.removeprefix('REFUSAL_')}: {answer.reason}"
        log.info("node %s refuses %s: %s", node_id, key, reason)
        now_unix_s = time.time()
        if answer.refusal == pb.REFUSAL_INVALID:
            await self._database.run(task_records.refuse, key, reason, now_unix_s)
        elif answer.refusal in FOR_GOOD:
            await self._database.run(task_records.put_off, key, node_id, now_unix_s, reason)
        else:
            wait_s = answer.retry_after.ToTimedelta().total_seconds() or core.BUSY_RETRY_S
            self._busy_until_s[node_id] = time.monotonic() + wait_s
            await self._database.run(task_records.put_off, key, node_id, now_unix_s)

    async def _cancel(self, key: Key, node_id: str, reason: str) -> bool:
        """Tell the node; where it knows nothing of the attempt, that is the end."""
        _, node = await self._database.run(_task_and_node, key, node_id)
        request = pb.TaskCancelRequest(task_id=key.task_id, attempt=key.attempt, reason=reason)
        answer = await self._workers.cancel(node_id, node["task_endpoint"], request)
        if answer.known:
            return False
        await self._database.run(task_records.not_held, key, time.time())
        await self.ended(key.task_id)
        return True


def _to_place(
    connection: sa.Connection, put_off: frozenset[str]
) -> tuple[list[core.Waiting], list[core.Node]]:
    waiting = task_records.waiting(connection)
    return waiting, node_records.for_placement(connection, put_off) if waiting else []


def _to_send(
    connection: sa.Connection,
) -> tuple[list[task_records.Row], list[task_records.Row]]:
    return task_records.offered(connection), task_records.to_cancel(connection)


def _task_and_node(
    connection: sa.Connection, key: Key, node_id: str
) -> tuple[task_records.Row, node_records.Row]:
    task = task_records.task(connection, key.task_id)
    node = node_records.node(connection, node_id)
    assert task is not None  # rows are never deleted while an attempt names them
    assert node is not None
    return task, node
