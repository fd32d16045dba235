"""`hivemind` and a master over TLS: each proves itself by the admin token, or nothing is said."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from procs.client.api import Master, MasterError
from procs.client.main import app
from procs.master.joining import WithoutToken
from procs.master_link.request import make_key
from shared.certificate import certificates, digest_of
from shared.join_token import Token, read_token, write_token
from tests.fakes.certificates import authority, party
from tests.fakes.https_front import front
from tests.master.test_identity import join
from tests.master_link.tls_rig import TlsMaster, tls_master

Hivemind = Callable[..., Awaitable[str]]
SECRET = "s" * 32


def with_client(
    tmp_path: Path, scenario: Callable[[TlsMaster, Hivemind], Awaitable[None]], **settings: Any
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), tls_master(tmp_path / "master", **settings) as master:

            async def hivemind(*arguments: str) -> str:
                file = str(master.addresses.admin_token_file)
                env = {"HIVEMIND_MASTER": master.url, "HIVEMIND_ADMIN_TOKEN_FILE": file}
                ran = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)
                return str(ran.output).strip()

            await scenario(master, hivemind)

    asyncio.run(run())


def test_a_token_is_made_as_asked(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster, hivemind: Hivemind) -> None:
        create = ("token", "create", "--uses", "2", "--trust-level", "3")
        token = await hivemind(*create, "--ttl", "1h")
        assert read_token(token).digest == await hivemind("ca", "show")
        assert [(await join(master, token)).trust_level for _ in range(2)] == [3, 3]
        assert (await join(master, token)).reason == "this join token has been used up"
        assert "must be a whole number from 1 to" in await hivemind(*create, "--ttl", "999d")

    with_client(tmp_path, scenario)


def test_nodes_are_approved_and_revoked(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster, hivemind: Hivemind) -> None:
        key = make_key()
        node_id = (await join(master, "", key, node_name="new")).reason.rpartition(" ")[2]
        assert "waiting for approval" in await hivemind("nodes")
        await hivemind("nodes", "approve", node_id, "--trust-level", "1")
        assert (await join(master, "", key)).trust_level == 1
        await hivemind("nodes", "revoke", node_id)
        (node,) = json.loads(await hivemind("nodes", "--json"))
        assert (node["node_id"], node["state"]) == (node_id, "revoked")
        assert (await join(master, "", key)).reason.endswith("was revoked by the master's owner")
        assert await hivemind("nodes", "revoke", "nobody") == "hivemind: there is no node nobody"

    with_client(tmp_path, scenario)


def test_the_authority_is_changed(tmp_path: Path) -> None:
    async def scenario(master: TlsMaster, hivemind: Hivemind) -> None:
        before = await hivemind("ca", "show")
        digest = (await hivemind("ca", "rotate")).split()[0]
        assert digest != before
        assert await hivemind("ca", "show") == before  # until it takes over
        answer = await join(master, await master.token())
        old, new = certificates(answer.certificate_authority.decode())
        assert (digest_of(old), digest_of(new)) == (before, digest)

    with_client(tmp_path, scenario, without_token=WithoutToken.REFUSE)


def token_file(folder: Path, text: str) -> Path:
    path = folder / "admin.token"
    path.write_text(text + "\n")
    return path


@pytest.mark.parametrize("text", ["", "hma1.x.y", f"hm1.{'a' * 52}.{SECRET}"])
def test_without_an_admin_token_nothing_is_asked(tmp_path: Path, text: str) -> None:
    with pytest.raises(MasterError, match=r"wants the master's admin token, and .* has none"):
        Master("https://127.0.0.1:1", token_file(tmp_path, text))


def test_who_has_not_the_tokens_authority_never_sees_the_token(tmp_path: Path) -> None:
    ours, theirs = authority(), authority()
    text = write_token(Token(digest_of(ours.pem), SECRET), "hma1")
    document = {"certificate_authority": theirs.pem}
    with front(party(theirs, "hivemind-master"), tmp_path, lambda _: document) as told:
        with pytest.raises(MasterError, match="is not the master that the admin token is for"):
            Master(told.url, token_file(tmp_path, text))
        document["certificate_authority"] = ours.pem  # which anybody can say
        with pytest.raises(MasterError, match="not of an authority that this machine trusts"):
            Master(told.url, token_file(tmp_path, text))
        assert told.headers != []
        assert not any(SECRET in value for headers in told.headers for value in headers.values())


def test_a_node_that_plays_the_master_never_sees_the_token(tmp_path: Path) -> None:
    ours = authority()
    text = write_token(Token(digest_of(ours.pem), SECRET), "hma1")
    document = {"certificate_authority": ours.pem}
    with (
        front(party(ours, "node-of-another"), tmp_path, lambda _: document) as told,
        pytest.raises(MasterError, match="for another name: this is not the master"),
    ):
        Master(told.url, token_file(tmp_path, text))


def test_behind_a_public_front_the_token_is_shown_to_who_the_trust_store_proves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, vouching = authority(), authority()
    (tmp_path / "store.pem").write_text(vouching.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "store.pem"))
    text = write_token(Token(digest_of(ours.pem), SECRET), "hma1")
    document = {"certificate_authority": ours.pem, "nodes": []}
    with front(party(vouching, "localhost"), tmp_path, lambda _: document) as told:
        api = Master(told.url.replace("127.0.0.1", "localhost"), token_file(tmp_path, text))
        assert api.get("/api/v1/nodes")["nodes"] == []
        assert told.headers[-1]["authorization"] == f"Bearer {text}"
        api.close()
