"""The link's life: find the master, register, beat, carry; lose it, wait, and try again.

Each try has fresh connections, closed when it fails. What is held is never touched by that.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from procs.master_link import core, wire
from procs.master_link.core import Attempt
from procs.master_link.courier import Courier, LogWatch
from procs.master_link.desk import Desk, Standing
from procs.master_link.discovery import Discovered
from procs.master_link.identity import IdentityError
from procs.master_link.master_edge import (
    Channel,
    DeniedError,
    Master,
    MasterAwayError,
    MasterError,
    MasterLateError,
    UnsupportedError,
    join,
    register_once,
)
from procs.master_link.membership import Membership, NotTakenError, RenewedError
from procs.master_link.news import Bell, News
from procs.master_link.passage import Passage, is_within
from procs.master_link.records import Records
from procs.master_link.turns import Turns
from shared.backoff import next_delay_s
from shared.master_http import MasterHttpError, UntrustedError
from shared.messages import LinkPhase, StopReason, Tunnel
from shared.pb import hivemind_pb2 as pb
from shared.settings import Settings
from shared.taskdir import TaskKey

PROTOCOL_VERSION = 1
REFUSED_RETRY_S = 60.0  # not taken, or not yet: a person has to do something
SHORTEST_TIMEOUT_S = 2.0
SETTLE_S = 0.1  # changes within it go in one heartbeat
MISSED_HEARTBEATS = 2  # then the channel is replaced
STEADY_S = 30.0  # of acknowledged heartbeats: the next failure waits shortly again
HARDWARE_WAIT_S = 3.0  # for the monitor's and the executor's first word, before registering
DISCOVER_EVERY = 5  # tries
REPORT_PATIENCE = 3  # a report is never urgent: its retries begin slower than a delivery's
REFUSED_REPORT_TRIES = 5  # a master that lost its memory takes it once the node has registered
ASSIGNMENTS_AT_ONCE = 16  # of up to 16 MiB each, on the channel

log = logging.getLogger("master_link")


Register = Callable[[pb.NodeRegistrationRequest], Awaitable[pb.NodeRegistrationResponse]]


@dataclass
class Progress:
    """How far the link is; shown in link.state."""

    phase: LinkPhase = LinkPhase.UNCONFIGURED
    detail: str = "MASTER_NODE_URL is not set"
    heartbeat_acked_unix_s: float = 0.0
    tunnel: Tunnel | None = None
    tunnel_known: bool = False


@dataclass
class Session:
    """One node's link to its master."""

    settings: Settings
    desk: Desk
    news: News
    records: Records
    standing: Standing
    membership: Membership
    passage: Passage
    incarnation: str
    version: str
    remember_node_id: Callable[[str], None]
    shown: Callable[[], None]  # what link.state says has changed
    progress: Progress = field(default_factory=Progress)
    task_endpoint: str = ""
    heartbeat_due: asyncio.Event = field(default_factory=asyncio.Event)
    report_due: asyncio.Event = field(default_factory=asyncio.Event)
    couriers_due: Bell = field(default_factory=Bell)
    _heartbeat_s: float = core.DEFAULT_HEARTBEAT_S
    _found: Discovered | None = None
    _call_register: Register | None = None  # how the master is told of this node, in this try
    _registered: bytes | None = None  # the hardware that the master has
    _endpoint_told: str = ""
    _sequence: int = 0
    _steady_since_s: float | None = None
    _couriers: dict[TaskKey, asyncio.Task[None]] = field(default_factory=dict)
    _connected: asyncio.Event = field(default_factory=asyncio.Event)
    _channel: Channel | None = None
    _channel_since_s: float = float("inf")

    # -------------------------------------------------------------- tries

    async def run(self) -> None:
        """Until cancelled."""
        if not self.settings.master_url:
            return
        failures = tries = 0
        while True:
            self._steady_since_s, reason, refused, renewed = None, "", False, False
            try:
                await self._try(await self._discover(tries))
            except* RenewedError:
                renewed = True
            except* (NotTakenError, DeniedError, UntrustedError, IdentityError) as group:
                reason, refused = _reason(group), True
            except* (MasterError, MasterHttpError) as group:
                reason = _reason(group)
                why = await self.membership.why_refused(self._found, reason)
                reason, refused = why or reason, bool(why)
            if renewed:
                log.info("connecting again with the new certificate")
                continue
            failures = 0 if self._was_steady() else failures
            delay_s = REFUSED_RETRY_S if refused else next_delay_s(failures, random.random())
            failures, tries = failures + 1, tries + 1
            self._show(LinkPhase.WAITING, f"{reason}; next try in {delay_s:.0f} s")
            log.warning("the link is down: %s; next try in %.1f s", reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _discover(self, tries: int) -> Discovered:
        if self._found is None or tries % DISCOVER_EVERY == 0:
            self._show(LinkPhase.DISCOVERING, self.settings.master_url)
            try:
                self._found = await self.membership.discover()
            except UntrustedError:
                self._found = None  # it is not believed any more
                raise
        return self._found

    def _was_steady(self) -> bool:
        since_s = self._steady_since_s
        return since_s is not None and time.monotonic() - since_s >= STEADY_S

    def _show(self, phase: LinkPhase, detail: str = "") -> None:
        self.progress.phase, self.progress.detail = phase, detail
        self.shown()

    async def _try(self, found: Discovered) -> None:
        """One try with connections of its own; it ends by an exception alone."""
        self._connected.clear()
        credentials = await self.membership.certified(found, partial(self._join, found))
        address, beside = found.grpc, partial(register_once, found.grpc, credentials)
        if self.passage.required:
            self._call_register = beside
            address = await self._through_tunnel(found)
        master = Master(address, credentials)
        self._call_register = partial(self._tell, master, beside)
        try:
            if self._registered is None:
                await self._register(found)
            watch, turns = LogWatch(), Turns()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(master))
                group.create_task(self._keep_channel(master))
                group.create_task(self._send_reports(master))
                group.create_task(watch.run())
                group.create_task(self.membership.keep_valid(self._renew))
                group.create_task(self._carry(group, master, watch, turns))
                if self.passage.required:
                    group.create_task(self.passage.lost())
        finally:
            self._couriers.clear()
            await master.close()

    async def _through_tunnel(self, found: Discovered) -> str:
        """With VPN=required: registered beside the tunnel, then nothing until it is proven.
        Returns where the master is in it."""
        if self._registered is None or self._must_tell():
            await self._register(found)
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self.membership.keep_valid(self._renew))
            await self._wait_for_tunnel(found)
            renewing.cancel()
        address = found.inside or found.grpc
        tunnel = self.progress.tunnel
        beside = tunnel is not None and not is_within(address, tunnel.allowed_ips)
        text = f"VPN=required: the tunnel is up, and the master's gRPC, {address}, is not in it"
        self.membership.warn("tunnel", text if beside else "")
        return address

    async def _wait_for_tunnel(self, found: Discovered) -> None:
        self._show(LinkPhase.WAITING, f"VPN=required: {self.passage.why_not}")
        while not await self.passage.opened():
            await self._register(found)
            self._show(LinkPhase.WAITING, f"VPN=required: {self.passage.why_not}")

    async def _tell(
        self, master: Master, beside: Register, request: pb.NodeRegistrationRequest
    ) -> pb.NodeRegistrationResponse:
        """A new key of the tunnel rather beside it: it cuts the tunnel that its answer comes by."""
        if self.passage.required and request.wireguard_public_key != self.passage.told:
            with contextlib.suppress(MasterAwayError):
                return await beside(request)
        return await master.register(request)

    # -------------------------------------------------------------- RegisterNode

    async def _register(self, found: Discovered | None = None) -> None:
        """As the node that it is; with plain text also for the first time."""
        assert self._call_register is not None  # each try sets it first
        request = await self._registration()
        if found is not None and self.settings.join_token and not request.node_id:
            request.join_token = self.settings.join_token
            await self._joined(request, await join(found.join, found.authority, request))
        else:
            await self._joined(request, await self._call_register(request))

    async def _join(
        self, found: Discovered, certificate_request: bytes, token: str
    ) -> pb.NodeRegistrationResponse:
        """Without a certificate: by the token, or for who lets it in."""
        request = await self._registration()
        request.certificate_request, request.join_token = certificate_request, token
        response = await join(found.join, found.authority, request)
        await self._joined(request, response)
        return response

    async def _renew(self, certificate_request: bytes, _: str) -> pb.NodeRegistrationResponse:
        """Over a connection that the old certificate authenticates."""
        assert self._call_register is not None  # each try sets it first
        request = await self._registration()
        request.certificate_request = certificate_request
        response = await self._call_register(request)
        await self._joined(request, response)
        return response

    async def _registration(self) -> pb.NodeRegistrationRequest:
        self._show(LinkPhase.REGISTERING)
        await self._await_hardware()
        return pb.NodeRegistrationRequest(
            node_name=self.settings.node_name,
            inventory=self._inventory(),
            worker_version=self.version,
            protocol_version=PROTOCOL_VERSION,
            task_endpoint=self.task_endpoint,
            wireguard_public_key=self.passage.key,
            node_id=self.standing.node_id,
        )

    async def _await_hardware(self) -> None:
        deadline_s = time.monotonic() + HARDWARE_WAIT_S
        while not self.news.hardware_known and time.monotonic() < deadline_s:
            await self.news.any.wait(deadline_s - time.monotonic())

    def _inventory(self) -> pb.NodeInventory:
        return wire.inventory(*self.news.hardware)

    async def _joined(
        self, request: pb.NodeRegistrationRequest, response: pb.NodeRegistrationResponse
    ) -> None:
        if not response.accepted:
            raise NotTakenError(f"the master does not take this node: {response.reason}")
        if not response.node_id:
            raise NotTakenError("the master gives this node no node_id")
        if response.node_id != self.standing.node_id:
            try:
                await asyncio.to_thread(self.remember_node_id, response.node_id)
            except OSError as err:  # without it a restart would be another node
                raise NotTakenError(f"the node_id can't be stored: {err}") from err
            self.standing.node_id = response.node_id
        await self._set_trust(response.trust_level)
        await self._set_key(request.wireguard_public_key)
        self._heartbeat_s = core.heartbeat_s(wire.seconds(response.heartbeat_interval))
        self.progress.tunnel = wire.tunnel(response.vpn) if response.HasField("vpn") else None
        self.progress.tunnel_known = True
        self._registered = self._fingerprint(request.inventory)
        self._endpoint_told = request.task_endpoint
        log.info("registered as %s, trust level %d", response.node_id, response.trust_level)
        self.shown()

    async def _set_trust(self, level: int) -> None:
        if level != self.standing.trust_level:
            self.standing.trust_level = level
            await self._keep("trust_level", str(level))

    async def _set_desired(self, state: pb.NodeState) -> None:
        """Kept, so that a start while the master is away does not lift it."""
        desired = wire.desired(state)
        if desired is not self.standing.desired:
            self.standing.desired = desired
            await self._keep("desired", desired.value)

    async def _keep(self, fact: str, value: str) -> None:
        try:
            await self.records.run(self.records.store.set_fact, fact, value)
        except OSError as err:
            log.error("the master's %s is not stored: %s", fact, err)

    async def _set_key(self, public_key: str) -> None:
        """What the master was told of the tunnel's key, for this life and the next."""
        if public_key != self.passage.told:
            self.passage.told = public_key
            try:
                await self.records.run(self.records.store.set_fact, "tunnel_key", public_key)
            except OSError as err:
                log.error("the tunnel's key is not stored: %s", err)

    def _must_tell(self) -> bool:
        """The hardware, the tunnel's key, or the address at which the node can be dialled."""
        told = (self._endpoint_told, self.passage.told)
        return told != (self.task_endpoint, self.passage.key) or (
            self.news.hardware_known and self._fingerprint(self._inventory()) != self._registered
        )

    def _fingerprint(self, inventory: pb.NodeInventory) -> bytes:
        """Free disk space is no change of hardware."""
        bare = pb.NodeInventory()
        bare.CopyFrom(inventory)
        bare.disk_bytes = 0
        return bare.SerializeToString(deterministic=True)

    # -------------------------------------------------------------- Heartbeat

    def _hello(self) -> pb.HeartbeatRequest:
        """The sequence grows over restarts of this process: the incarnation is the machine's."""
        self._sequence = max(self._sequence + 1, time.monotonic_ns() // 1_000_000)
        return pb.HeartbeatRequest(
            node_id=self.standing.node_id,
            sequence=self._sequence,
            incarnation=self.incarnation,
            state=wire.NODE_STATES[self.standing.phase],
            tasks=[
                wire.task_ref(a.key, a.final or self.news.phase(a.key))
                for a in self.desk.undelivered()
            ],
            sent_at=wire.timestamp(time.time()),
        )

    async def _beat(self, master: Master) -> None:
        """Each interval, and soon after a change; ends when the master is lost."""
        missed = 0
        while True:
            try:
                self.heartbeat_due.clear()
                sent_s = time.monotonic()
                timeout_s = max(self._heartbeat_s, SHORTEST_TIMEOUT_S)
                response = await master.heartbeat(self._hello(), timeout_s)
            except MasterLateError:
                missed += 1
                self._steady_since_s = None
                if missed >= MISSED_HEARTBEATS:
                    raise
                continue
            missed = 0
            self._acknowledged()
            await self._obey(response, sent_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self.heartbeat_due.wait()
                    await asyncio.sleep(SETTLE_S)

    def _acknowledged(self) -> None:
        self.progress.heartbeat_acked_unix_s = time.time()
        self._steady_since_s = self._steady_since_s or time.monotonic()
        if self.progress.phase is not LinkPhase.CONNECTED:
            self._show(LinkPhase.CONNECTED)
            self._connected.set()

    async def _obey(self, response: pb.HeartbeatResponse, sent_s: float) -> None:
        await self._set_desired(response.desired_state)
        if response.HasField("received_at"):
            self.membership.note_clock(time.time() - wire.seconds(response.received_at))
        for ref in response.forget:
            try:
                await self.desk.forget(TaskKey(ref.task_id, ref.attempt))
            except OSError as err:
                log.error("%s.%d is not yet forgotten: %s", ref.task_id, ref.attempt, err)
        if response.reregister or self._must_tell():
            await self._register()
            self._acknowledged()
        unseen = response.HasField("channel_open") and not response.channel_open
        if unseen and self._channel_since_s < sent_s and self._channel is not None:
            log.info("the master sees no channel of this node: opening it again")
            self._channel.close()

    # -------------------------------------------------------------- OpenChannel

    async def _keep_channel(self, master: Master) -> None:
        """Always open once the executor has spoken: before that, nothing could be admitted."""
        await self.news.executor_heard.wait()
        await self._connected.wait()
        failures = 0
        while True:
            opened_s = time.monotonic()
            try:
                await self._use_channel(master)
                reason = "the master has closed it"
            except UnsupportedError as err:
                log.info("the master offers no channel: %s", err)
                await asyncio.sleep(REFUSED_RETRY_S)
                continue
            except MasterError as err:
                reason = str(err)
            self.heartbeat_due.set()  # is the master there at all?
            if time.monotonic() - opened_s > STEADY_S:
                failures = 0
            delay_s = core.retry_s(failures, random.random())
            failures += 1
            log.info("the channel is closed: %s; open again in %.1f s", reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _use_channel(self, master: Master) -> None:
        answers: set[asyncio.Task[None]] = set()
        async with master.open_channel(self._hello()) as channel:
            self._channel = channel
            try:
                async for message in channel.messages():
                    if message.WhichOneof("body") == "hello":
                        self._channel_since_s = time.monotonic()
                        continue
                    answer = asyncio.create_task(self._answer(channel, message))
                    answers.add(answer)
                    answer.add_done_callback(answers.discard)
                    if len(answers) >= ASSIGNMENTS_AT_ONCE:
                        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._channel, self._channel_since_s = None, float("inf")
                channel.close()  # an answer that the master does not read would wait for ever
                if answers:
                    await asyncio.wait(answers)

    async def _answer(self, channel: Channel, message: pb.MasterMessage) -> None:
        answer = pb.NodeMessage()
        try:
            match message.WhichOneof("body"):
                case "assign":
                    answer.assigned.CopyFrom(await self.desk.assign(message.assign))
                case "cancel":
                    answer.cancelled.CopyFrom(await self.desk.cancel(message.cancel))
                case _:
                    return
            await channel.send(answer)
        except (MasterError, OSError) as err:
            log.warning("no answer on the channel, the master will ask again: %s", err)

    # -------------------------------------------------------------- reports and tasks

    async def _send_reports(self, master: Master) -> None:
        """The oldest first, one at a time, each until it is acknowledged."""
        await self._connected.wait()
        ledger, failures, refusals = self.records.ledger, 0, 0
        while True:
            self.report_due.clear()
            try:
                report = await self.records.run(ledger.next, self.standing.node_id)
                if report is None:
                    await self.report_due.wait()
                    continue
                number, body = report
                response = await master.report(body)
                refusals = 0 if response.accepted else refusals + 1
                if 0 < refusals < REFUSED_REPORT_TRIES:
                    raise MasterError("the master does not take it")
                await self._reported(number, response)
                failures = refusals = 0
            except DeniedError as err:
                log.warning("a report is refused, it is sent again in a minute: %s", err)
                await asyncio.sleep(REFUSED_RETRY_S)
            except (MasterError, OSError) as err:
                log.warning("a report is not acknowledged: %s", err)
                failures += 1
                await asyncio.sleep(core.retry_s(failures + REPORT_PATIENCE, random.random()))

    async def _reported(self, number: int, response: pb.NodeStatusResponse) -> None:
        await self.records.run(self.records.ledger.drop, number)
        if not response.accepted:
            log.warning("the master has refused a report")
            return
        await self._set_trust(response.trust_level)
        if response.desired_state != pb.NODE_STATE_UNSPECIFIED:
            await self._set_desired(response.desired_state)

    async def _carry(
        self, group: asyncio.TaskGroup, master: Master, watch: LogWatch, turns: Turns
    ) -> None:
        """A courier for each attempt that the master is owed; none for a forgotten one."""
        await self._connected.wait()
        while True:
            owed = {attempt.key: attempt for attempt in self.desk.undelivered()}
            for key, task in list(self._couriers.items()):
                if task.done():
                    del self._couriers[key]
                elif key not in owed and self._is_forgotten(key):
                    task.cancel()
            for key in owed.keys() - self._couriers.keys():
                task = group.create_task(self._courier(owed[key], master, watch, turns))
                self._couriers[key] = task
                task.add_done_callback(lambda _: self.couriers_due.ring())
            await self.couriers_due.wait()

    def _is_forgotten(self, key: TaskKey) -> bool:
        attempt = self.desk.attempts.get(key)
        return attempt is None or attempt.stop is StopReason.FORGOTTEN

    async def _courier(
        self, attempt: Attempt, master: Master, watch: LogWatch, turns: Turns
    ) -> None:
        away = self.heartbeat_due.set
        await Courier(attempt, self.desk, master, watch, turns, away).run()


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    """The first of what went wrong."""
    err: BaseException = group
    while isinstance(err, BaseExceptionGroup):
        err = err.exceptions[0]
    return str(err)
