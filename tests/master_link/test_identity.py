"""Joining and staying: the real master and master_link over TLS, and who is refused, and why."""

import asyncio
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from procs.master import joining
from procs.master_link import membership, session
from procs.master_link.identity import Identity, IdentityError
from shared.certificate import certificates, digest_of
from shared.join_token import Token, read_token, write_token
from shared.messages import LinkPhase
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import TaskKey
from tests.fakes.certificates import DAY_S, Party, authority, of_master, party
from tests.fakes.https_front import front
from tests.master_link.tls_rig import TlsMaster, TlsRig, node, tls_master

Scenario = Callable[[TlsMaster], Awaitable[None]]
NAMED = ("grpc.ssl_target_name_override", "hivemind-master")


def with_master(tmp_path: Path, scenario: Scenario, **settings: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(90), tls_master(tmp_path / "master", **settings) as master:
            await scenario(master)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute between two tries takes a moment."""
    monkeypatch.setattr(session, "REFUSED_RETRY_S", 0.2)
    monkeypatch.setattr(membership, "RENEW_RETRY_S", 0.2)
    monkeypatch.setattr(session, "HARDWARE_WAIT_S", 0.0)


# ------------------------------------------------------------------ joining


def test_a_node_joins_by_its_token_and_is_the_same_node_from_then_on(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token(trust_level=2)) as r:
            await r.start_link()
            node_id = await r.joined()
            state = r.link_state()
            assert state.trust_level == 2
            assert state.authority_digest == read_token(r.settings["MASTER_JOIN_TOKEN"]).digest
            assert state.certificate_until_unix_s - state.heartbeat_acked_unix_s > 29 * DAY_S
            assert stat.S_IMODE((r.lib / "node.key").stat().st_mode) == 0o600
            kept = [(r.lib / name).read_bytes() for name in ("node.key", "node.crt")]
            await r.stop_link()
            del r.settings["MASTER_JOIN_TOKEN"]  # it is not needed again
            await r.start_link()
            assert await r.joined() == node_id
            assert [(r.lib / name).read_bytes() for name in ("node.key", "node.crt")] == kept
            assert [n["node_id"] for n in await master.nodes()] == [node_id]

    with_master(tmp_path, scenario)


async def _refused(master: TlsMaster, token: str, words: str) -> None:
    """A node with this token waits, says so, and tries again."""
    async with node(master.url, token) as r:
        await r.start_link()
        await r.in_phase(LinkPhase.WAITING, words)
        await r.in_phase(LinkPhase.REGISTERING if "token" in words else LinkPhase.DISCOVERING)
        await r.in_phase(LinkPhase.WAITING, words)
        assert not (r.lib / "node.crt").exists()


def test_a_token_lets_in_as_many_as_it_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(master: TlsMaster) -> None:
        token = await master.token(uses=2)
        ids = set()
        for _ in range(2):
            async with node(master.url, token) as r:
                await r.start_link()
                ids.add(await r.joined())
        assert len(ids) == 2
        await _refused(master, token, "this join token has been used up")
        assert len(await master.nodes()) == 2

    with_master(tmp_path, scenario)
    assert "the link is down: the master does not take this node: this join token has" in (
        caplog.text
    )


def test_a_token_that_this_master_never_gave_is_refused(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        token = read_token(await master.token())
        wrong = write_token(token._replace(secret=token.secret[::-1]))
        await _refused(master, wrong, "this master does not know this join token")

    with_master(tmp_path, scenario)


def test_a_token_of_another_master_reaches_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(master: TlsMaster) -> None:
        token = read_token(await master.token())
        other = digest_of(authority().pem)
        await _refused(
            master, write_token(token._replace(digest=other)), "this is not the master that gave"
        )
        assert await master.nodes() == []

    with_master(tmp_path, scenario)
    assert "this is not the master that gave" in caplog.text


def test_without_a_token_an_authority_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        await _refused(master, "", "not of an authority that this machine trusts; set MASTER_JOIN_")

    with_master(tmp_path, scenario)


def test_a_spent_token_with_the_same_key_gets_the_same_node(tmp_path: Path) -> None:
    """The first answer may have been lost: nothing of it is on disk."""

    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            await r.start_link()
            node_id = await r.joined()
            await r.stop_link()
            for name in ("node.id", "node.crt", "master-ca.crt"):
                (r.lib / name).unlink()
            await r.start_link()
            assert await r.joined() == node_id
            assert len(await master.nodes()) == 1

    with_master(tmp_path, scenario)


def test_a_node_id_is_given_to_its_key_alone(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            await r.start_link()
            node_id = await r.joined()
            await r.stop_link()
            for name in ("node.key", "node.crt"):
                (r.lib / name).unlink()
            r.settings["MASTER_JOIN_TOKEN"] = await master.token()
            await r.start_link()
            await r.in_phase(LinkPhase.WAITING, f"{node_id} belongs to another key")

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ who is not believed


async def stopped(r: TlsRig) -> str:
    """A node that has joined, its link stopped; its node_id."""
    await r.start_link()
    node_id = await r.joined()
    await r.stop_link()
    return node_id


def test_a_certificate_of_another_authority_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            node_id = await stopped(r)
            forged = party(authority(), node_id, key=(r.lib / "node.key").read_bytes())
            (r.lib / "node.crt").write_bytes(forged.certificate)
            await r.start_link()
            await r.in_phase(LinkPhase.WAITING, "closes the connection when this node shows its")

    with_master(tmp_path, scenario)
    assert "closes the connection when this node shows its certificate" in caplog.text


def test_a_node_may_not_act_as_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            node_id = await stopped(r)
            (r.lib / "node.id").write_text("node-of-another\n")
            await r.start_link()
            await r.in_phase(LinkPhase.WAITING, f"{node_id} may not act as node-of-another")

    with_master(tmp_path, scenario)
    assert "PERMISSION_DENIED: " in caplog.text


def test_a_revoked_node_is_not_heard_until_it_is_approved(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            await r.start_link()
            node_id = await r.joined()
            await master.order(f"/api/v1/nodes/{node_id}/revoke")
            await r.in_phase(LinkPhase.WAITING, f"{node_id} was revoked by the master's owner")
            assert (await master.nodes())[0]["state"] == "revoked"
            await r.stop_link()  # nor by its token
            (r.lib / "node.crt").unlink()
            await r.start_link()
            await r.in_phase(LinkPhase.WAITING, f"{node_id} was revoked by the master's owner")
            assert not (r.lib / "node.crt").exists()
            await master.order(f"/api/v1/nodes/{node_id}/approve", trust_level=1)
            assert await r.joined() == node_id

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ a certificate's life


def age(r: TlsRig, master: TlsMaster, node_id: str, age_s: float) -> bytes:
    """As if the node had had its certificate for so long."""
    old = party(of_master(master.data), node_id, age_s=age_s, key=(r.lib / "node.key").read_bytes())
    (r.lib / "node.crt").write_bytes(old.certificate)
    return old.certificate


def test_at_two_thirds_of_its_life_the_certificate_is_renewed(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            node_id = await stopped(r)
            old = age(r, master, node_id, 21 * DAY_S)
            await r.start_link()
            await r.until(lambda: (r.lib / "node.crt").read_bytes() != old)
            await r.until(lambda: r.link_state().certificate_until_unix_s > 0)
            assert await r.joined() == node_id
            left_s = r.link_state().certificate_until_unix_s - r.link_state().heartbeat_acked_unix_s
            assert left_s > 29 * DAY_S

    with_master(tmp_path, scenario)


def test_a_renewed_certificate_is_used_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the connections to the master and at the worker's own port, without a restart."""
    monkeypatch.setattr(membership, "LOOK_EVERY_S", 0.05)
    caplog.set_level("INFO")

    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token(), TASK_LISTEN="127.0.0.1:0") as r:
            await r.start_link()
            await r.joined()
            endpoint = await endpoint_of(master)
            first = await asyncio.to_thread(shown, endpoint)
            monkeypatch.setattr("procs.master_link.identity.RENEW_AT", 0.0)
            async with asyncio.timeout(20):
                while await asyncio.to_thread(shown, endpoint) == first:
                    await asyncio.sleep(0.05)
            assert "connecting again with the new certificate" in caplog.text
            assert "the link is down" not in caplog.text

    with_master(tmp_path, scenario)


def test_a_renewal_that_is_refused_is_a_warning_while_the_certificate_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LOOK_EVERY_S", 0.05)
    whole = joining.recognise

    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            await r.start_link()
            await r.joined()
            old = (r.lib / "node.crt").read_bytes()
            monkeypatch.setattr(joining, "recognise", lambda *_, **__: "not today")
            monkeypatch.setattr("procs.master_link.identity.RENEW_AT", 0.0)
            await r.until(lambda: any("not today" in text for text in r.link_state().warnings))
            await r.joined()
            assert (r.lib / "node.crt").read_bytes() == old
            monkeypatch.setattr(joining, "recognise", whole)
            await r.until(lambda: (r.lib / "node.crt").read_bytes() != old)
            await r.until(lambda: r.link_state().warnings == ())

    with_master(tmp_path, scenario)


@pytest.mark.parametrize(
    "told",
    ["no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["text", "no DER"],
)
def test_an_authority_that_is_none_does_not_replace_the_one_that_is_trusted(
    tmp_path: Path, told: str
) -> None:
    ours = authority()
    mine = Identity(tmp_path)
    mine.trust(ours.pem)
    mine.request()
    given = party(ours, "node-x", key=(tmp_path / "node.key").read_bytes()).certificate
    with pytest.raises(IdentityError, match="what the master gave is no certificate for us"):
        mine.keep(given, told)
    mine.load()
    assert (mine.authority, mine.valid) == (ours.pem, None)
    (tmp_path / "master-ca.crt").write_text(told)
    mine.load()
    assert mine.authority == ""


def shown(address: str, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """The certificate that is shown there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


async def endpoint_of(master: TlsMaster) -> str:
    """Where the only node can be dialled."""
    async with asyncio.timeout(20):
        while not (endpoint := str((await master.nodes())[0]["task_endpoint"])):
            await asyncio.sleep(0.05)
    return endpoint


def test_before_two_thirds_of_its_life_it_is_not(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            old = age(r, master, await stopped(r), 19 * DAY_S)
            await r.start_link()
            await r.joined()
            await r.until(lambda: len(r.link_state().node_id) > 0)
            assert (r.lib / "node.crt").read_bytes() == old

    with_master(tmp_path, scenario)


def test_an_expired_certificate_needs_a_token_and_keeps_the_node(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            node_id = await stopped(r)
            age(r, master, node_id, 31 * DAY_S)
            del r.settings["MASTER_JOIN_TOKEN"]
            await r.start_link()
            await r.in_phase(LinkPhase.WAITING, f"{node_id} is not valid any more: it needs")
            await r.stop_link()
            r.settings["MASTER_JOIN_TOKEN"] = await master.token()
            await r.start_link()
            assert await r.joined() == node_id
            assert len(await master.nodes()) == 1

    with_master(tmp_path, scenario)


def test_a_change_of_the_authority_reaches_the_nodes_while_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates live for six seconds here: a slow machine needs some to renew."""
    monkeypatch.setattr("procs.master.ca.CERTIFICATE_LIFE_S", 6.0)
    monkeypatch.setattr("procs.master.ca.BACKDATED_S", 0.0)
    monkeypatch.setattr("procs.master.main.REFRESH_EVERY_S", 0.1)

    async def scenario(master: TlsMaster) -> None:
        def trusted() -> list[str]:
            return [digest_of(one) for one in certificates((r.lib / "master-ca.crt").read_text())]

        async with node(master.url, await master.token()) as r:
            await r.start_link()
            node_id = await r.joined()
            (old,) = trusted()
            new = str((await master.order("/api/v1/authority/rotate"))["digest"])
            await r.until(lambda: trusted() == [old, new])
            await r.until(lambda: trusted() == [new], 40.0)
            renewed = r.link_state().certificate_until_unix_s
            await r.until(lambda: r.link_state().certificate_until_unix_s > renewed)
            assert await r.joined() == node_id
            assert r.link_state().authority_digest == new
            (there,) = await master.nodes()
            assert there["state"] == "ready"

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ who plays the master


async def served(port_of: Party) -> tuple[grpc.aio.Server, str]:
    """gRPC as this party serves it."""
    server = grpc.aio.server()
    pair = (port_of.key, port_of.certificate)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        pytest.param("node-of-another", True, "for another name: this is not the", id="name"),
        pytest.param("hivemind-master", False, "not of an authority that this", id="authority"),
    ],
)
def test_who_serves_grpc_must_be_the_master(
    tmp_path: Path, name: str, known: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        ours = authority()
        server, address = await served(party(ours if known else authority(), name))
        document = {"grpc": address, "join": address, "certificate_authority": ours.pem}
        with front(party(ours, "hivemind-master"), tmp_path, lambda _: document) as told:
            async with node(told.url, write_token(Token(digest_of(ours.pem), "a" * 32))) as r:
                await r.start_link()
                await r.in_phase(LinkPhase.WAITING, words)
        await server.stop(None)

    asyncio.run(scenario())
    assert f"{words}" in caplog.text


def test_a_master_in_plain_text_behind_https_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        ours = authority()
        server = grpc.aio.server()
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        document = {"grpc": address, "certificate_authority": ours.pem}
        with front(party(ours, "hivemind-master"), tmp_path, lambda _: document) as told:
            async with node(told.url, write_token(Token(digest_of(ours.pem), "a" * 32))) as r:
                await r.start_link()
                await r.in_phase(LinkPhase.WAITING, "it does not speak TLS there")
        await server.stop(None)

    asyncio.run(scenario())


def test_a_wrong_clock_is_told_by_the_masters_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        ours = authority()
        document = {"grpc": "127.0.0.1:1", "certificate_authority": ours.pem}
        mine = party(ours, "hivemind-master", age_s=-9 * DAY_S)
        with front(mine, tmp_path, lambda _: document) as told:
            told.clock_ahead_s = 9 * DAY_S
            async with node(told.url, write_token(Token(digest_of(ours.pem), "a" * 32))) as r:
                await r.start_link()
                await r.in_phase(LinkPhase.WAITING, "clock is 9 days behind the master's: set it")

    asyncio.run(scenario())


def test_a_clock_that_goes_wrong_later_is_a_warning(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token()) as r:
            link = await r.start_link()
            await r.joined()
            assert r.link_state().warnings == ()
            link.session.membership.note_clock(300.0)
            assert r.link_state().warnings == (
                "this machine's clock is 5 minutes ahead of the master's: set it"
                " (timedatectl set-ntp true)",
            )
            link.session.heartbeat_due.set()  # the master tells its own time again
            await r.until(lambda: r.link_state().warnings == ())

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ the worker's own port


def dial(r: TlsRig, endpoint: str, caller: Party | None, node_id: str) -> grpc.aio.Channel:
    roots = (r.lib / "master-ca.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(
        roots, caller.key if caller else None, caller.certificate if caller else None
    )
    options = (("grpc.ssl_target_name_override", node_id),)
    return grpc.aio.secure_channel(endpoint, credentials, options=options)


def test_the_workers_port_takes_the_master_and_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procs.master_link.listener.STRANGER_SHOWN_S", 4.0)

    async def scenario(master: TlsMaster) -> None:
        async with node(master.url, await master.token(), TASK_LISTEN="127.0.0.1:0") as r:
            await r.start_link()
            node_id = await r.joined()
            endpoint = await endpoint_of(master)
            signer = of_master(master.data)
            callers = [
                (party(signer, "node-of-another"), "PERMISSION_DENIED"),
                (party(authority(), "hivemind-master"), "UNAVAILABLE"),
                (None, "UNAVAILABLE"),
                (party(signer, "hivemind-master"), "OK"),
            ]
            for caller, expected in callers:
                async with dial(r, endpoint, caller, node_id) as channel:
                    assert await _outcome(channel) == expected, caller

            assert any("it came from node-of-another" in t for t in r.link_state().warnings)
            await r.until(lambda: r.link_state().warnings == ())  # it is long ago
            with pytest.raises(OSError, match=r"alert|EOF|reset"):
                await asyncio.to_thread(shown, endpoint, ssl.TLSVersion.TLSv1_2)

    with_master(tmp_path, scenario)
    assert "a call to TASK_LISTEN is refused: it came from node-of-another" in caplog.text


async def _outcome(channel: grpc.aio.Channel) -> str:
    stub: Any = pb_grpc.TaskServiceStub
    request = pb.TaskCancelRequest(task_id="t", attempt=1)
    try:
        await stub(channel).CancelTask(request, timeout=10)
    except grpc.aio.AioRpcError as err:
        return err.code().name
    return "OK"


def test_the_master_dials_the_worker_and_proves_itself(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster) -> None:
        token = await master.token(trust_level=3)
        async with node(master.url, token, runs=True, TASK_LISTEN="127.0.0.1:0") as r:
            await r.start_link()
            await r.joined()
            await master.order("/api/v1/tasks", task_id="t", command=["x"])
            await r.kept(TaskKey("t", 1))
            assert (await master.get("/api/v1/tasks/t"))["state"] == "succeeded"

    with_master(tmp_path, scenario)
