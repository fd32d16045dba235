"""The link to the master: joins, beats, takes assignments, delivers what became of them.

asyncio, because grpc.aio is; the bus is in the loop through its descriptors. This file wires;
decisions are in core.py, gRPC in the edge files, link.db behind records.py.

Reads: task.state, owner.want, process.state, host.load, gpu.load, vpn.state. Publishes:
task.want, link.state, vpn.want.
"""

import asyncio
import hashlib
import importlib.metadata
import json
import os
import signal
import time
from pathlib import Path

from procs.master_link import core, reports, wire
from procs.master_link.desk import Desk, Standing
from procs.master_link.disk import Disk
from procs.master_link.identity import Identity
from procs.master_link.listener import Listener
from procs.master_link.membership import Membership
from procs.master_link.news import READS, News
from procs.master_link.passage import Passage
from procs.master_link.records import FAULT_RETRY_S, Records
from procs.master_link.reports import Meter, first_from
from procs.master_link.session import Session
from shared import service
from shared.bus import LoopWatch
from shared.files import write_atomic
from shared.messages import LinkState, NodePhase, OwnerWant, TaskWant, VpnWant, WantedTask
from shared.pb import hivemind_pb2 as pb

NAME = "master_link"
CAPABILITIES: frozenset[str] = frozenset()
TRIM_EVERY_S = 60.0
SHORTEST_INTERVAL_S = 0.1


class Link:
    """Everything of one running master_link."""

    def __init__(self, context: service.Context) -> None:
        self._bus, self._settings, self._log = context.bus, context.settings, context.log
        self._home = context.home
        self._news = News(context.bus)
        self._records = Records(context.home / "lib" / "link.db")
        self._standing = Standing()
        self._components = core.Components()
        self._last_owner: OwnerWant | None = None  # silence lifts no pause, a start neither
        self._synced = False
        self._want: tuple[WantedTask, ...] = ()
        self._reward_last = 0
        self._meter = Meter(time.time(), time.monotonic())
        self.desk = Desk(
            self._settings,
            Disk(context.home),
            self._records,
            self._news,
            self._standing,
            self._on_change,
        )
        self._identity = Identity(context.home / "lib")
        self._membership = Membership(self._settings, self._identity, self._publish_link)
        self._passage = Passage(self._settings.vpn, self._news)
        self._key = ""  # of the tunnel, as it was last seen
        self._listener = Listener(
            self._settings.task_listen, self.desk, self._membership, self._passage, self._listens
        )
        self.session = Session(
            self._settings,
            self.desk,
            self._news,
            self._records,
            self._standing,
            self._membership,
            self._passage,
            incarnation(os.getppid()),
            _version(),
            self._remember_node_id,
            self._publish_link,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; what has begun is finished."""
        loop = asyncio.get_running_loop()
        self._watch = watch = LoopWatch(self._bus, loop, self._look)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._beats())]
                await self._open()
                for work in (self._listener.run, self.session.run, self._measure, self._trim):
                    tasks.append(group.create_task(work()))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            watch.close()
            await self.desk.close()
            await self._records.close()

    # -------------------------------------------------------------- start

    async def _open(self) -> None:
        """Know everything that is held before the first word about it."""
        await self._records.open()
        await asyncio.to_thread(self._identity.load)
        store = self._records.store
        self._standing.node_id = await asyncio.to_thread(self._known_node_id)
        self._standing.trust_level = int(await self._records.run(store.fact, "trust_level") or 0)
        desired = await self._records.run(store.fact, "desired")
        self._standing.desired = NodePhase(desired or NodePhase.READY)
        self._passage.told = await self._records.run(store.fact, "tunnel_key")
        self._last_owner = await asyncio.to_thread(_owner_on_disk, self._home)
        last_to_unix_s = self._records.ledger.to_unix_ns / 1e9
        self._meter = Meter(first_from(last_to_unix_s, time.time()), time.monotonic())
        await self.desk.load()
        self._synced = True
        self._on_change()
        self._look()

    def _node_id_file(self) -> Path:
        return self._home / "lib" / "node.id"

    def _known_node_id(self) -> str:
        """In a file of its own: without it a broken link.db would cost the node its tasks."""
        path = self._node_id_file()
        return path.read_text().strip() if path.exists() else ""

    def _remember_node_id(self, node_id: str) -> None:
        write_atomic(self._node_id_file(), node_id.encode() + b"\n")

    # -------------------------------------------------------------- the bus

    async def _beats(self) -> None:
        while True:
            self._bus.connect_new()
            self._publish_want()
            self._publish_link()
            self._watch.beat()
            await asyncio.sleep(service.next_beat_in_s(time.monotonic()))

    def _look(self) -> None:
        """Take in what the others say, and act on the difference."""
        self._news.take()
        if not self._synced:
            return
        load, state = self._news.host_load(), self._news.task_state()
        gpus = self._news.gpu_loads()
        self._meter.hear_alerts(load, gpus, state, time.time())
        if load is not None:
            self._meter.add(load, gpus)
        self._judge_node()
        before, self._key = self._key, self._passage.key
        if self._key != before:
            self.session.heartbeat_due.set()
        if self.desk.want() != self._want:
            self._on_change()
        if state is not None:
            self.desk.settle(state)

    def _judge_node(self) -> None:
        down = self._components.down(self._news.processes(), time.monotonic())
        owner, state = self._news.owner() or self._last_owner, self._news.task_state()
        self._last_owner = owner
        phase, reason = core.node_state(owner, self._standing.desired, state, down)
        changed = phase is not self._standing.phase
        self._standing.phase, self._standing.reason = phase, reason
        if changed:
            self._log.info("the node is %s %s", phase, reason)
            self.session.heartbeat_due.set()

    def _on_change(self) -> None:
        """What is held, or should be, has changed."""
        self._publish_want()
        self.session.heartbeat_due.set()
        self.session.couriers_due.ring()

    def _publish_want(self) -> None:
        now_s = time.monotonic()
        if self._synced:
            self._want = self.desk.want()
            self.desk.told(self._want, now_s)
        self._bus.publish(TaskWant(at_s=now_s, synced=self._synced, tasks=self._want))

    def _publish_link(self) -> None:
        now_s, progress = time.monotonic(), self.session.progress
        self._bus.publish(
            VpnWant(
                at_s=now_s,
                synced=progress.tunnel_known,
                tunnel=progress.tunnel,
                public_key=self._passage.told,
            )
        )
        self._bus.publish(self.link_state(now_s))

    def link_state(self, now_s: float) -> LinkState:
        progress = self.session.progress
        return LinkState(
            at_s=now_s,
            synced=self._synced,
            phase=progress.phase,
            detail=progress.detail,
            master_url=self._settings.master_url,
            node_id=self._standing.node_id,
            node_name=self._settings.node_name,
            node_state=self._standing.phase,
            node_state_reason=self._standing.reason,
            trust_level=self._standing.trust_level,
            heartbeat_acked_unix_s=progress.heartbeat_acked_unix_s,
            undelivered_tasks=self.desk.held,
            unacknowledged_reports=self._records.ledger.pending if self._synced else 0,
            reward_last=self._reward_last,
            reward_total=self._records.ledger.total if self._synced else 0,
            warnings=tuple(self._membership.warnings.values()),
            authority_digest=self._membership.authority_digest,
            certificate_until_unix_s=self._membership.certificate_until_unix_s,
        )

    # -------------------------------------------------------------- long-running work

    def _listens(self, endpoint: str) -> None:
        """Where the master may dial; empty: nowhere any more."""
        self.session.task_endpoint = endpoint
        self.session.heartbeat_due.set()

    async def _measure(self) -> None:
        """Close an interval each RESOURCE_REPORT_INTERVAL; store it before anyone is told."""
        if not self._settings.master_url:
            return
        while True:
            done_s = time.time() - self._meter.from_unix_s
            await asyncio.sleep(
                max(SHORTEST_INTERVAL_S, self._settings.report_interval_s - max(0.0, done_s))
            )
            tasks = self._news.task_state()
            message = self._meter.close(
                time.time(),
                time.monotonic(),
                self._news.processes(),
                tasks,
            )
            message.state = wire.NODE_STATES[self._standing.phase]
            await self._store_report(message)

    async def _store_report(self, interval: pb.NodeStatusRequest) -> None:
        ledger, store = self._records.ledger, self._records.store
        while True:
            try:
                total = await self._records.run(ledger.add, interval, self._standing.node_id)
                break
            except OSError as err:
                self._log.error("a report can't be stored: %s", err)
                await asyncio.sleep(FAULT_RETRY_S)
        self._reward_last = interval.reward
        self.session.report_due.set()
        try:
            await self._records.run(store.add_reward, reports.of_interval(interval, total))
        except OSError as err:
            self._log.error("a reward is counted, but not listed: %s", err)

    async def _trim(self) -> None:
        while True:
            await self.desk.trim(time.time())
            await asyncio.sleep(TRIM_EVERY_S)


def incarnation(parent_pid: int) -> str:
    """New at each start of the whole worker: of the machine's boot and of our supervisord."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = Path(f"/proc/{parent_pid}/stat").read_text().rpartition(")")[2].split()[19]
    return hashlib.sha256(f"{boot} {parent_pid} {started}".encode()).hexdigest()[:16]


def _owner_on_disk(home: Path) -> OwnerWant | None:
    """What web will say once it is up; a file that can't be read is web's to speak of."""
    try:
        raw = (home / "lib" / "owner.json").read_bytes()
        return OwnerWant(at_s=0.0, wish=NodePhase(json.loads(raw)["wish"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _version() -> str:
    try:
        return importlib.metadata.version("hivemind-worker")
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


async def _run(context: service.Context) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not context.stop.is_set():
        await Link(context).run(stop)


def serve(context: service.Context) -> None:
    asyncio.run(_run(context))


def main() -> int:
    return service.begin(NAME, CAPABILITIES, READS, serve)
