"""The master with TLS: each call counts for the node in its certificate, and nothing else does."""

import asyncio
import base64
import contextlib
import hashlib
import http.client
import re
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from procs.master import ca, identity, node_records
from procs.master.identity import Identity
from procs.master.joining import WithoutToken
from procs.master.main import Settings, running
from procs.master_link.identity import Credentials
from procs.master_link.request import make_key, request
from procs.master_link.server_edge import serve
from shared.certificate import certificates, digest_of
from shared.master_http import DISCOVERY, by_authority, get
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from tests.fakes.certificates import DAY_S, Party, authority, of_master, party
from tests.fakes.running_master import MasterProcess
from tests.fakes.toy_worker import ToyWorker
from tests.master_link.tls_rig import TlsMaster, tls_master

NAMED = (("grpc.ssl_target_name_override", "hivemind-master"),)
WAIT_S = 10.0


def with_master(
    tmp_path: Path, scenario: Callable[[TlsMaster], Awaitable[None]], **settings: Any
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), tls_master(tmp_path / "master", **settings) as master:
            await scenario(master)

    asyncio.run(run())


def channel(master: TlsMaster, address: str, caller: Party | None = None) -> grpc.aio.Channel:
    roots = of_master(master.data).pem.encode()
    proof = grpc.ssl_channel_credentials(
        roots, caller.key if caller else None, caller.certificate if caller else None
    )
    return grpc.aio.secure_channel(address, proof, options=NAMED)


class Caller:
    """Both services, as a node with this certificate calls them."""

    def __init__(self, master: TlsMaster, caller: Party) -> None:
        self.channel = channel(master, master.addresses.grpc, caller)
        stubs: Any = (pb_grpc.NodeServiceStub, pb_grpc.TaskServiceStub)
        self.nodes, self.tasks = (stub(self.channel) for stub in stubs)


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return f"{caught.value.code().name}: {caught.value.details()}"


async def join(
    master: TlsMaster, token: str, key: bytes = b"", **more: Any
) -> pb.NodeRegistrationResponse:
    asked = pb.NodeRegistrationRequest(
        protocol_version=1, join_token=token, certificate_request=request(key or make_key()), **more
    )
    async with channel(master, master.addresses.join) as joining:
        stub: Any = pb_grpc.NodeServiceStub
        response: pb.NodeRegistrationResponse = await stub(joining).RegisterNode(
            asked, timeout=WAIT_S
        )
    return response


async def joined(master: TlsMaster, name: str = "") -> Party:
    key = make_key()
    response = await join(master, await master.token(), key, node_id=name)
    assert response.accepted, response.reason
    return Party(response.node_id, key, response.certificate)


# ------------------------------------------------------------------ another's name


async def _answered(stream: Any, message: object) -> None:
    await stream.write(message)
    await stream.read()


CALLS: list[tuple[str, Callable[[Caller, str], Any]]] = [
    ("Heartbeat", lambda c, n: c.nodes.Heartbeat(pb.HeartbeatRequest(node_id=n))),
    ("Report", lambda c, n: c.nodes.ReportNodeStatus(pb.NodeStatusRequest(node_id=n))),
    (
        "OpenChannel",
        lambda c, n: _answered(
            c.nodes.OpenChannel(), pb.NodeMessage(hello=pb.HeartbeatRequest(node_id=n))
        ),
    ),
    (
        "RegisterNode",
        lambda c, n: c.nodes.RegisterNode(
            pb.NodeRegistrationRequest(protocol_version=1, node_id=n)
        ),
    ),
    (
        "ReportTaskStatus",
        lambda c, n: c.tasks.ReportTaskStatus(
            pb.TaskStatusRequest(node_id=n, task_id="t", attempt=1)
        ),
    ),
    (
        "SubmitTaskResult",
        lambda c, n: c.tasks.SubmitTaskResult(
            pb.TaskResultRequest(node_id=n, task_id="t", attempt=1)
        ),
    ),
]


@pytest.mark.parametrize("call", [pytest.param(c, id=name) for name, c in CALLS])
def test_a_node_may_not_act_as_another(
    tmp_path: Path, call: Callable[[Caller, str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine, other = await joined(master), await joined(master)
        caller = Caller(master, mine)
        words = await refused(call(caller, other.name))
        assert words == f"PERMISSION_DENIED: {mine.name} may not act as {other.name}"
        assert words.removeprefix("PERMISSION_DENIED: ") in caplog.text
        await caller.channel.close(None)

    with_master(tmp_path, scenario)


async def _each(stream: Any) -> None:
    async for _ in stream:
        pass


UNNAMED: list[tuple[str, Callable[[Caller], Any]]] = [
    (
        "StreamTaskLogs",
        lambda c: _answered(
            c.tasks.StreamTaskLogs(), pb.TaskLogChunk(task_id="t", attempt=1, end=True)
        ),
    ),
    (
        "FetchTaskInput",
        lambda c: _each(
            c.tasks.FetchTaskInput(pb.TaskInputRequest(task_id="t", attempt=1, path="x"))
        ),
    ),
    (
        "QueryTaskOutput",
        lambda c: c.tasks.QueryTaskOutput(
            pb.TaskOutputQuery(task_id="t", attempt=1, sha256=bytes(32))
        ),
    ),
    (
        "UploadTaskOutput",
        lambda c: c.tasks.UploadTaskOutput(
            iter([pb.TaskOutputChunk(task_id="t", attempt=1, sha256=bytes(32))])
        ),
    ),
]


def test_what_names_no_node_counts_only_from_the_node_that_holds_the_attempt(
    tmp_path: Path,
) -> None:
    async def scenario(master: TlsMaster) -> None:
        holder, other = Caller(master, await joined(master, "holder")), Caller(
            master, await joined(master)
        )
        stream = holder.nodes.OpenChannel()
        hello = pb.HeartbeatRequest(node_id="holder", state=pb.NODE_STATE_READY, incarnation="1")
        await stream.write(pb.NodeMessage(hello=hello))
        assert (await stream.read()).HasField("hello")
        await master.order("/api/v1/tasks", task_id="t", command=["x"])
        assert (await stream.read()).assign.task_id == "t"
        for name, call in UNNAMED:
            words = await refused(call(other))
            assert words.startswith("PERMISSION_DENIED: node-"), name
            assert words.endswith("does not hold t.1"), name
        receipt = await holder.tasks.QueryTaskOutput(
            pb.TaskOutputQuery(task_id="t", attempt=1, sha256=bytes(32)), timeout=WAIT_S
        )
        assert receipt == pb.TaskOutputReceipt()
        stream.cancel()
        for caller in (holder, other):
            await caller.channel.close(None)

    with_master(tmp_path, scenario)


HELLO: dict[str, Any] = {"state": pb.NODE_STATE_READY, "incarnation": "1"}


async def opened(caller: Caller, node_id: str, **more: Any) -> Any:
    stream = caller.nodes.OpenChannel()
    hello = pb.HeartbeatRequest(node_id=node_id, **HELLO | more)
    await stream.write(pb.NodeMessage(hello=hello))
    assert (await stream.read()).HasField("hello")
    return stream


async def hand_over(master: TlsMaster, first: Caller, second: Caller) -> list[Any]:
    """The task goes from one to the other as its second attempt; their channels."""
    channels = [await opened(first, "first")]
    await master.order("/api/v1/tasks", task_id="t", command=["x"])
    assert (await channels[0].read()).assign.attempt == 1
    await opened(first, "first", state=pb.NODE_STATE_DRAINING, sequence=1)
    channels.append(await opened(second, "second"))
    ended = pb.TaskResultRequest(node_id="first", task_id="t", attempt=1)
    ended.state, ended.cause = pb.TASK_STATE_FAILED, pb.FAILURE_CAUSE_NODE
    assert (await first.tasks.SubmitTaskResult(ended, timeout=WAIT_S)).acknowledged
    assert (await channels[1].read()).assign.attempt == 2
    return channels


def test_a_stream_that_was_open_before_brings_nothing_to_anothers_attempt(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        first = Caller(master, await joined(master, "first"))
        second = Caller(master, await joined(master, "second"))
        stream = first.tasks.StreamTaskLogs()
        await stream.write(pb.TaskLogChunk(task_id="t", attempt=2))  # nobody's yet
        assert (await stream.read()).next_sequence == 0
        channels = await hand_over(master, first, second)
        forged = pb.TaskLogChunk(task_id="t", attempt=2, records=[pb.LogRecord(data=b"forged")])
        words = await refused(_answered(stream, forged))
        assert words == "PERMISSION_DENIED: node first does not hold t.2"
        assert (await master.get("/api/v1/tasks/t"))["log_records"] == 0
        for channel in channels:
            channel.cancel()
        for caller in (first, second):
            await caller.channel.close(None)

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ who was revoked


class Deaf:
    """A node's port: it counts what it is asked to take, and names no attempt in its answer."""

    def __init__(self) -> None:
        self.secrets: asyncio.Queue[str] = asyncio.Queue()

    async def assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        self.secrets.put_nowait(request.secrets["password"])
        return pb.TaskAssignmentResponse()

    async def cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        return pb.TaskCancelResponse(task_id=request.task_id, attempt=request.attempt)


@contextlib.asynccontextmanager
async def served(master: TlsMaster, mine: Party, port: Deaf) -> AsyncIterator[str]:
    own = Credentials(of_master(master.data).pem.encode(), mine.key, mine.certificate)
    number, stop = await serve(port, "127.0.0.1:0", lambda: own)
    try:
        yield f"127.0.0.1:{number}"
    finally:
        await stop()


def test_a_revoked_node_is_told_no_secret_any_more(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine, port = await joined(master), Deaf()
        async with served(master, mine, port) as endpoint:
            caller = Caller(master, mine)
            asked = pb.NodeRegistrationRequest(protocol_version=1, task_endpoint=endpoint)
            assert (await caller.nodes.RegisterNode(asked, timeout=WAIT_S)).accepted
            beat = pb.HeartbeatRequest(node_id=mine.name, **HELLO)
            await caller.nodes.Heartbeat(beat, timeout=WAIT_S)
            task = {"command": ["x"], "secrets": {"password": "p"}}
            await master.order("/api/v1/tasks", task_id="t", **task)
            assert await port.secrets.get() == "p"
            await master.order(f"/api/v1/nodes/{mine.name}/revoke")
            while (await master.get("/api/v1/tasks/t"))["attempt"] == 1:  # until it is lost
                await asyncio.sleep(0.05)
            assert port.secrets.empty()
            await caller.channel.close(None)

    with_master(tmp_path, scenario, lost_after_s=3.0)


def test_a_renewal_that_crosses_a_revocation_is_refused(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine = await joined(master)
        with contextlib.closing(sqlite3.connect(master.data / "master.db")) as database, database:
            database.execute("UPDATE nodes SET revoked = 1")  # the gate has not heard of it yet
        caller = Caller(master, mine)
        asked = pb.NodeRegistrationRequest(protocol_version=1, node_id=mine.name)
        asked.certificate_request = request(mine.key)
        answer = await caller.nodes.RegisterNode(asked, timeout=WAIT_S)
        words = f"{mine.name} was revoked by the master's owner"
        assert (answer.accepted, answer.reason, answer.certificate) == (False, words, b"")
        await caller.channel.close(None)

    with_master(tmp_path, scenario)


def test_a_node_that_is_revoked_gets_no_more_of_an_input(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine, content = await joined(master, "first"), bytes(32 * 2**20)
        sha256 = hashlib.sha256(content).hexdigest()
        (master.data / "inputs" / sha256).write_bytes(content)
        caller = Caller(master, mine)
        channel = await opened(caller, "first")
        task_input = {"path": "in", "sha256": sha256, "size_bytes": len(content)}
        await master.order("/api/v1/tasks", task_id="t", command=["x"], inputs=[task_input])
        assert (await channel.read()).HasField("assign")
        asked = pb.TaskInputRequest(task_id="t", attempt=1, path="in")
        fetch = aiter(caller.tasks.FetchTaskInput(asked))
        assert (await anext(fetch)).offset == 0
        await master.order("/api/v1/nodes/first/revoke")
        words = await refused(_each(fetch))
        assert words == "PERMISSION_DENIED: first was revoked by the master's owner"
        await caller.channel.close(None)

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ who is no node of this master


def test_who_has_no_certificate_of_this_master_reaches_nothing_but_registration(
    tmp_path: Path,
) -> None:
    async def scenario(master: TlsMaster) -> None:
        beat = pb.HeartbeatRequest(node_id="node-x")
        stub: Any = pb_grpc.NodeServiceStub
        for stranger in (None, party(authority(), "node-x")):
            async with channel(master, master.addresses.grpc, stranger) as closed:
                assert (await refused(stub(closed).Heartbeat(beat))).startswith("UNAVAILABLE")
        own = party(of_master(master.data), "hivemind-master")
        async with channel(master, master.addresses.grpc, own) as itself:
            words = await refused(stub(itself).Heartbeat(beat))
            assert words == "PERMISSION_DENIED: a node's certificate is needed here"
        async with channel(master, master.addresses.join) as joining:
            assert (await refused(stub(joining).Heartbeat(beat))).startswith("UNIMPLEMENTED")

    with_master(tmp_path, scenario)


def spoilt_request(good: bytes, bad: bytes) -> bytes:
    """A certificate request in which these bytes are others."""
    der = base64.b64decode("".join(request(make_key()).decode().splitlines()[1:-1]))
    assert good in der
    body = base64.encodebytes(der.replace(good, bad, 1)).decode()
    edge = "-----{} CERTIFICATE REQUEST-----"
    return f"{edge.format('BEGIN')}\n{body}{edge.format('END')}\n".encode()


EC_KEY = bytes.fromhex("06072a8648ce3d0201")
UNKNOWN_KEY = spoilt_request(EC_KEY, EC_KEY[:-1] + b"\x09")
UNKNOWN_VERSION = spoilt_request(b"\x02\x01\x00", b"\x02\x01\x07")
REQUESTS = [
    pytest.param(
        {"certificate_request": UNKNOWN_KEY}, "it is no PKCS#10 request", id="kind of key"
    ),
    pytest.param(
        {"certificate_request": UNKNOWN_VERSION}, "it is no PKCS#10 request", id="its version"
    ),
    pytest.param({"certificate_request": b"x"}, "it is no PKCS#10 request", id="no request"),
    pytest.param({"protocol_version": 2}, "protocol_version is 2", id="version"),
    pytest.param({"join_token": "hm1.x"}, "this is no join token", id="token"),
    pytest.param({"node_id": "Hivemind-Master"}, "node_id: 1 to 64 of a-z", id="capitals"),
    pytest.param({"node_id": "hivemind-master"}, "the master's own name", id="master's name"),
    pytest.param({"node_id": "hivemind-master."}, "no dot at its end", id="with a dot"),
    pytest.param({"node_id": "../x"}, "node_id: 1 to 64 of a-z", id="no name"),
]


@pytest.mark.parametrize(("spoilt", "words"), REQUESTS)
def test_a_registration_is_refused_with_its_reason(
    tmp_path: Path, spoilt: dict[str, Any], words: str
) -> None:
    async def scenario(master: TlsMaster) -> None:
        good: dict[str, Any] = {
            "protocol_version": 1,
            "join_token": await master.token(),
            "certificate_request": request(make_key()),
        }
        stub: Any = pb_grpc.NodeServiceStub
        async with channel(master, master.addresses.join) as joining:
            answer = await stub(joining).RegisterNode(
                pb.NodeRegistrationRequest(**good | spoilt), timeout=WAIT_S
            )
        assert not answer.accepted
        assert words in answer.reason
        assert answer.certificate == b""

    with_master(tmp_path, scenario)


def test_a_stranger_can_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(master: TlsMaster) -> None:
        await join(master, "hm1.x", node_name="n" * 100_000)
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await join(master, "hm1.x", node_name="n" * 1_000_000)

    with_master(tmp_path, scenario)
    assert "is refused: this is no join token" in caplog.text
    assert len(caplog.text) < 10_000


def test_nobody_writes_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(master: TlsMaster) -> None:
        key = make_key()
        mine = Party("", key, (await join(master, await master.token(), key)).certificate)
        await join(master, "", key, node_id="x\nFORGED" + "y" * 10_000)
        caller = Caller(master, mine)
        for forged in ("x\nFORGED", "\x1b[2J", "y" * 5_000):
            await refused(caller.nodes.Heartbeat(pb.HeartbeatRequest(node_id=forged)))
        await caller.channel.close(None)

    with_master(tmp_path, scenario)
    refusals = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert len(refusals) == 4
    assert all(text.isprintable() and len(text) < 400 for text in refusals)


def test_a_renewal_with_another_key_is_refused(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine = await joined(master)
        caller = Caller(master, mine)
        asked = pb.NodeRegistrationRequest(protocol_version=1, node_id=mine.name)
        asked.certificate_request = request(make_key())
        answer = await caller.nodes.RegisterNode(asked, timeout=WAIT_S)
        assert (answer.accepted, answer.reason) == (False, f"{mine.name} belongs to another key")
        await caller.channel.close(None)

    with_master(tmp_path, scenario)


def test_a_master_that_lost_its_memory_knows_a_node_by_its_certificate(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        mine = party(of_master(master.data), "node-of-old")
        caller = Caller(master, mine)
        beat = pb.HeartbeatRequest(node_id=mine.name)
        assert (await caller.nodes.Heartbeat(beat, timeout=WAIT_S)).reregister
        asked = pb.NodeRegistrationRequest(protocol_version=1, node_id=mine.name)
        asked.certificate_request = request(make_key())
        answer = await caller.nodes.RegisterNode(asked, timeout=WAIT_S)
        assert (answer.accepted, answer.reason) == (False, f"{mine.name} belongs to another key")
        asked.certificate_request = b""
        answer = await caller.nodes.RegisterNode(asked, timeout=WAIT_S)
        assert (answer.node_id, answer.trust_level) == ("node-of-old", 0)
        assert not (await caller.nodes.Heartbeat(beat, timeout=WAIT_S)).reregister
        await caller.channel.close(None)

    with_master(tmp_path, scenario, trust_level=3)


# ------------------------------------------------------------------ tokens and approval


def test_a_token_raises_a_nodes_trust_and_never_lowers_it(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        key, levels = make_key(), []
        for level in (1, 3, 2):
            answer = await join(master, await master.token(trust_level=level), key)
            levels.append(answer.trust_level)
        assert levels == [1, 3, 3]

    with_master(tmp_path, scenario)


def test_a_node_of_the_time_of_plain_text_keeps_its_id_by_a_token(tmp_path: Path) -> None:
    async def plain() -> None:
        settings = Settings("127.0.0.1:0", "127.0.0.1:0", tmp_path / "master")
        async with running(settings) as addresses, ToyWorker(addresses.grpc, node_id="node-old"):
            pass

    async def scenario(master: TlsMaster) -> None:
        without = await join(master, "", node_id="node-old")
        assert without.reason == "node-old belongs to another key"
        mine = await joined(master, "node-old")
        assert mine.name == "node-old"
        again = await join(master, await master.token(), node_id="node-old")
        assert again.reason == "node-old belongs to another key"
        assert len(await master.nodes()) == 1

    asyncio.run(plain())
    with_master(tmp_path, scenario)


def test_no_token_is_spent_without_a_node_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the master were killed in the middle."""
    whole = node_records.register

    def once(*_: Any) -> Any:
        monkeypatch.setattr(node_records, "register", whole)
        raise OSError("the disk is full")

    async def scenario(master: TlsMaster) -> None:
        token = await master.token()
        monkeypatch.setattr(node_records, "register", once)
        with pytest.raises(grpc.aio.AioRpcError, match="the disk is full"):
            await join(master, token)
        assert (await join(master, token)).accepted

    with_master(tmp_path, scenario)


def test_without_a_token_it_is_as_the_owner_has_chosen(tmp_path: Path) -> None:
    async def take(master: TlsMaster) -> None:
        answer = await join(master, "")
        assert (answer.accepted, answer.trust_level) == (True, 0)

    async def refuse(master: TlsMaster) -> None:
        answer = await join(master, "")
        assert answer.reason == "this master takes no node without a join token"

    with_master(tmp_path / "a", take, without_token=WithoutToken.TAKE, trust_level=3)
    with_master(tmp_path / "b", refuse, without_token=WithoutToken.REFUSE)


def test_a_node_waits_until_it_is_approved(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        key = make_key()
        answer = await join(master, "", key, node_name="new")
        node_id = answer.reason.rpartition(" ")[2]
        assert answer.reason == f"waiting for approval as {node_id}"
        (waits,) = await master.nodes()
        assert (waits["node_id"], waits["name"]) == (node_id, "new")
        assert waits["state"] == "waiting for approval"
        stranger = await join(master, "", make_key(), node_id=node_id)
        assert stranger.reason == f"{node_id} belongs to another key"
        await master.order(f"/api/v1/nodes/{node_id}/approve", trust_level=2)
        for _ in range(2):  # the first answer may be lost
            answer = await join(master, "", key)
            assert (answer.accepted, answer.node_id, answer.trust_level) == (True, node_id, 2)
        assert [n["state"] for n in await master.nodes()] == ["unspecified"]

    with_master(tmp_path, scenario)


def test_a_token_is_good_for_its_time_and_kept_as_a_digest_only(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        token = await master.token(ttl_s=1)
        secret = token.rpartition(".")[2].encode()
        async with asyncio.timeout(WAIT_S):
            while (answer := await join(master, token)).accepted:
                token = await master.token(ttl_s=1)
                await asyncio.sleep(1.1)
        assert answer.reason == "this join token has expired"
        for path in master.data.rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ the API


def test_the_api_wants_the_admin_token(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async def status(path: str, **headers: str) -> int:
            return await asyncio.to_thread(_status, master.url, path, headers)

        assert await status(DISCOVERY) == 200
        for authorization in ("", "Bearer x", "Bearer \xe9", "Basic eDp4"):
            for path in ("/api/v1/nodes", "/api/v1/tasks", "/api/v1/authority", "/none"):
                assert await status(path, Authorization=authorization) == 401, authorization
        file = master.addresses.admin_token_file
        assert file is not None
        assert file.stat().st_mode & 0o777 == 0o600
        shown = {"Authorization": f"Bearer {file.read_text().strip()}"}
        assert await status("/api/v1/nodes", **shown) == 200
        assert await status("/api/v1/nodes", **shown, Origin="https://x") == 403

    with_master(tmp_path, scenario)


def _status(url: str, path: str, headers: dict[str, str]) -> int:
    address = url.removeprefix("https://")
    with contextlib.closing(
        http.client.HTTPSConnection(address, timeout=10, context=unverified())
    ) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# ------------------------------------------------------------------ TLS 1.3 alone


def test_an_older_tls_is_refused_everywhere(tmp_path: Path) -> None:
    """In a process of its own: what has gRPC refuse it must be set before it is imported."""

    async def scenario() -> None:
        master = MasterProcess(tmp_path / "m", "--tls")
        await master.start()
        try:
            for address in (master.grpc, master.join, master.http):
                assert await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_2) == ""
                assert await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_3) == (
                    "TLSv1.3"
                )
        finally:
            await master.stop()

    asyncio.run(scenario())


def handshake(address: str, newest: ssl.TLSVersion) -> str:
    """The version that was agreed on; empty: none."""
    context = unverified()
    context.maximum_version = newest
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        try:
            with context.wrap_socket(plain) as secure:
                return str(secure.version())
        except OSError:
            return ""


# ------------------------------------------------------------------ a change of the authority


def test_the_authority_changes_over_a_certificates_life(tmp_path: Path) -> None:
    now_unix_s = 1_800_000_000.0
    master = Identity(tmp_path, lambda: now_unix_s)
    old, node_key = master.bundle, ca.read_request(request(make_key()))
    first_admin = master.admin_token
    before = master.issue("node-a", node_key)
    digest = master.rotate()
    assert master.rotate() == digest  # one at a time
    both = certificates(master.bundle)
    assert [digest_of(one) for one in both] == [digest_of(old), digest]
    assert master.digest == digest_of(old)  # of tokens: it signs the master's own still
    after = master.issue("node-a", node_key)
    assert signer_of(before, both) == 0
    assert signer_of(after, both) == 1

    version, now_unix_s = master.version, now_unix_s + 29 * DAY_S
    master.refresh()
    assert certificates(master.bundle) == both
    assert master.version > version  # its own certificate was renewed meanwhile
    version, now_unix_s = master.version, now_unix_s + DAY_S
    master.refresh()
    assert certificates(master.bundle) == both[1:]
    assert (master.digest, master.version) == (digest, version + 1)
    assert master.admin_token.split(".")[1:] == [digest, first_admin.split(".")[2]]
    master.refresh()
    assert master.version == version + 1
    assert Identity(tmp_path, lambda: now_unix_s).bundle == master.bundle


def signer_of(certificate: str, bundle: list[str]) -> int:
    issued = x509.load_pem_x509_certificate(certificate.encode())
    names = [x509.load_pem_x509_certificate(one.encode()).subject for one in bundle]
    return names.index(issued.issuer)


def test_the_masters_own_certificate_is_renewed_while_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procs.master.main.REFRESH_EVERY_S", 0.05)
    (tmp_path / "master").mkdir()
    made = Identity(tmp_path / "master", lambda: 0.0)  # in 1970: all is to be renewed
    file = tmp_path / "master" / "identity" / "master.pem"
    old = file.read_bytes()
    assert made.bundle

    async def scenario(master: TlsMaster) -> None:
        assert file.read_bytes() != old
        address = master.url.removeprefix("https://")
        first = await asyncio.to_thread(shown, address)
        aged = party(of_master(master.data), "hivemind-master", age_s=21 * DAY_S)
        file.write_bytes(aged.key + aged.certificate)
        for listens in (address, master.addresses.grpc, master.addresses.join):
            async with asyncio.timeout(WAIT_S):
                while await asyncio.to_thread(shown, listens) == first:
                    await asyncio.sleep(0.05)

    with_master(tmp_path, scenario)


def shown(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


@pytest.mark.parametrize("name", ["ca.pem", "master.pem", "admin.token"])
def test_a_broken_file_of_the_identity_is_one_clear_line(tmp_path: Path, name: str) -> None:
    Identity(tmp_path, lambda: 0.0)
    (tmp_path / "identity" / name).write_text("nothing of use")
    with pytest.raises(identity.IdentityError, match=re.escape(str(tmp_path / "identity"))):
        Identity(tmp_path, lambda: 0.0)


def test_https_is_verified_by_the_authority_under_the_masters_name(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        bundle = of_master(master.data).pem
        assert (await asyncio.to_thread(get, master.url, DISCOVERY, bundle)).by_authority
        assert by_authority(bundle).name == "hivemind-master"

    with_master(tmp_path, scenario)
