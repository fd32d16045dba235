"""The master's own loop: finds lost nodes, places what waits, sends what is not answered.

It compares what the database wants with what nodes have said, at every change and once a second;
so a start after a crash is nothing special. What to do is core's to say.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

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
            outlook = await self._database.run(_look)
            if await self._lose_silent_nodes(outlook.nodes):
                continue
            await self._place(outlook)
            self._send(outlook.live)
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

    async def _lose_silent_nodes(self, nodes: list[node_records.Row]) -> bool:
        """True: something has changed by it."""
        now_s = time.monotonic()
        silent = [
            row["node_id"]
            for row in nodes
            if now_s - self._heard_s.get(row["node_id"], self._started_s) >= self._lost_after_s
            and not row["lost"]
        ]
        for node_id in silent:
            log.warning("node %s is lost: silent for %.0f s", node_id, self._lost_after_s)
            for key in await self._database.run(node_records.lose, node_id, time.time()):
                await self.ended(key.task_id)
        return bool(silent)

    async def _place(self, outlook: "Outlook") -> None:
        if not outlook.waiting:
            return
        now_s = time.monotonic()
        put_off = frozenset(n for n, until_s in self._busy_until_s.items() if until_s > now_s)
        nodes = node_records.for_placement(outlook.nodes, outlook.live, put_off)
        offers, hopeless = core.place(outlook.waiting, nodes)
        for offer in await self._database.run(_record_offers, offers) if offers else ():
            key = Key(offer.task_id, offer.attempt)
            self._bells.ring(key.task_id)
            self._start("assign", key, self._assign(key, offer.node_id))
        for case in hopeless:
            key = Key(case.task_id, case.attempt)
            await self._database.run(task_records.refuse, key, case.reason, time.time())
            await self.ended(key.task_id)

    def _send(self, live: list[task_records.Row]) -> None:
        """What was offered and is not answered; what nodes may hold and should end."""
        for row in live:
            key, node_id = Key(row["task_id"], row["attempt"]), row["node_id"]
            if node_id is None:
                continue
            if row["cancel_reason"] is not None:
                self._start("cancel", key, self._cancel(key, node_id, row["cancel_reason"]))
            elif row["phase"] == core.AttemptPhase.OFFERED:
                self._start("assign", key, self._assign(key, node_id))

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

    def _forget_past(self) -> None:
        now_s = time.monotonic()
        self._resend_s = {n: at_s for n, at_s in self._resend_s.items() if at_s > now_s}
        self._failures = {n: f for n, f in self._failures.items() if self._is_open(n)}

    def _is_open(self, name: tuple[str, Key]) -> bool:
        return name in self._calls or name in self._resend_s

    # -------------------------------------------------------------- the calls

    async def _assign(self, key: Key, node_id: str) -> bool:
        """Offer the attempt to its node and note the answer."""
        request, endpoint = await self._database.run(_assignment, key, node_id)
        secrets = await asyncio.to_thread(self._files.secrets, key.task_id)
        request.secrets.update(secrets)
        answer = await self._workers.assign(node_id, endpoint, request)
        if (answer.task_id, answer.attempt) != key:
            raise Unanswered("the answer names another attempt")
        if answer.accepted:
            await self._database.run(task_records.accept, key, node_id)
            self._bells.ring(key.task_id)
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
        endpoint = await self._database.run(_endpoint, node_id)
        request = pb.TaskCancelRequest(task_id=key.task_id, attempt=key.attempt, reason=reason)
        answer = await self._workers.cancel(node_id, endpoint, request)
        if answer.known:
            return False
        await self._database.run(task_records.not_held, key, time.time())
        await self.ended(key.task_id)
        return True


class Outlook(NamedTuple):
    """What one round looks at."""

    nodes: list[node_records.Row]
    live: list[task_records.Row]
    waiting: list[core.Waiting]


def _look(connection: sa.Connection) -> Outlook:
    live = task_records.live(connection)
    return Outlook(node_records.nodes(connection), live, task_records.waiting(connection, live))


def _record_offers(connection: sa.Connection, offers: list[core.Offer]) -> list[core.Offer]:
    """Those that were still to be made."""
    return [
        offer
        for offer in offers
        if task_records.offer(connection, Key(offer.task_id, offer.attempt), offer.node_id)
    ]


def _assignment(
    connection: sa.Connection, key: Key, node_id: str
) -> tuple[pb.TaskAssignmentRequest, str]:
    """What to send, but for its secrets, and the address that the node gave. Nothing goes to a
    node that was revoked after it was offered the attempt: it is lost soon."""
    node = node_records.node(connection, node_id)
    if node is None or node["revoked"]:
        raise Unanswered(f"node {node_id} is revoked")
    request = task_records.spec(connection, key.task_id)
    request.attempt = key.attempt
    return request, node["task_endpoint"]


def _endpoint(connection: sa.Connection, node_id: str) -> str:
    node = node_records.node(connection, node_id)
    return node["task_endpoint"] if node is not None else ""
