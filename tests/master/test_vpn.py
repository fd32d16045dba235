"""The master's end of the VPN, with the real WireGuard in namespaces and a peer made by hand."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import grpc
import pytest

from procs.master import joining, node_records, vpn_records
from procs.master.database import Database, open_database
from procs.master.joining import Place
from procs.master.vpn_records import KeyTaken
from procs.master.wireguard import is_key, make_key, public_key_of
from procs.master_link.request import make_key as make_node_key
from procs.master_link.request import request
from shared.master_http import DISCOVERY, get
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from tests.fakes.certificates import of_master
from tests.fakes.supervised import until
from tests.fakes.tunnel_wires import MASTER, PORT, ROOT, TunnelMaster, TunnelWires, tunnel_wires

NAMED = (("grpc.ssl_target_name_override", "hivemind-master"),)
SERVER = "10.8.0.1"
CALL_S = 10.0


class Node:
    """A node that has a tunnel's end made by hand."""

    def __init__(self, master: TunnelMaster) -> None:
        self._master, self.key = master, make_node_key()
        self.vpn_key = make_key()
        with closing(master.api()) as api:
            self._token = str(api.order("/api/v1/tokens", {})["token"])

    def register(self) -> pb.NodeRegistrationResponse:
        asked = pb.NodeRegistrationRequest(
            protocol_version=1,
            join_token=self._token,
            certificate_request=request(self.key),
            wireguard_public_key=public_key_of(self.vpn_key),
        )
        roots = of_master(self._master.data).pem.encode()
        proof = grpc.ssl_channel_credentials(roots)
        with grpc.secure_channel(self._master.join, proof, options=NAMED) as channel:
            stub: Any = pb_grpc.NodeServiceStub
            response: pb.NodeRegistrationResponse = stub(channel).RegisterNode(
                asked, timeout=CALL_S
            )
        return response

    def joined(self) -> pb.NodeRegistrationResponse:
        response = self.register()
        assert response.accepted, response.reason
        self.node_id = response.node_id
        return response

    def tunnel(self, assigned: pb.VpnAssignment) -> None:
        wires = self._master.wires
        wires.peer(self.vpn_key, assigned.server_public_key, assigned.endpoint, assigned.address)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelMaster]:
    with tunnel_wires() as wires:
        master = TunnelMaster(wires, tmp_path_factory.mktemp("vpn") / "data")
        try:
            master.start()
            yield master
        finally:
            master.stop()


def shaken(wires: TunnelWires, node: Node) -> int:
    key = public_key_of(node.vpn_key)
    return until(lambda: wires.handshakes().get(key) or None, "a handshake")


def test_a_node_gets_its_place_and_keeps_it_while_the_master_is_killed(
    master: TunnelMaster,
) -> None:
    wires, node = master.wires, Node(master)
    vpn = node.joined().vpn
    assert (vpn.endpoint, list(vpn.allowed_ips)) == (f"{MASTER}:{PORT}", ["10.8.0.0/16"])
    node.tunnel(vpn)
    shaken(wires, node)
    assert wires.reaches(SERVER)
    with closing(master.api()) as api:
        seats = {n["node_id"]: n["vpn"] for n in api.get("/api/v1/nodes")["nodes"]}
    assert seats[node.node_id] == {
        "address": vpn.address.removesuffix("/32"),
        "handshake_unix_s": shaken(wires, node),
    }
    index = wires.index()
    master.kill()
    assert wires.reaches(SERVER), "the tunnel does not hang on the master's process"
    master.start()
    assert wires.index() == index
    assert wires.reaches(SERVER)
    assert node.joined().vpn == vpn
    assert Node(master).joined().vpn.address != vpn.address
    master.stop()
    assert wires.index() == 0
    master.start()


def test_a_key_is_replaced_a_revoked_node_is_cut_off_an_approved_one_is_back(
    master: TunnelMaster,
) -> None:
    wires, node = master.wires, Node(master)
    vpn, old = node.joined().vpn, public_key_of(node.vpn_key)
    assert old in wires.handshakes()
    node.vpn_key = make_key()
    assert node.joined().vpn == vpn
    new = public_key_of(node.vpn_key)
    assert old not in wires.handshakes()
    node.tunnel(vpn)
    shaken(wires, node)
    with closing(master.api()) as api:
        api.order(f"/api/v1/nodes/{node.node_id}/revoke", {})
        assert new not in wires.handshakes()
        assert not wires.reaches(SERVER)
        api.order(f"/api/v1/nodes/{node.node_id}/approve", {})
    assert new in wires.handshakes()


def test_another_nodes_key_and_what_is_no_key_are_refused(master: TunnelMaster) -> None:
    first, second = Node(master), Node(master)
    first.joined()
    second.vpn_key = first.vpn_key
    response = second.register()
    assert not response.accepted
    assert response.reason == (
        f"wireguard_public_key: it is {first.node_id}'s; make one of this node's own"
    )
    second.vpn_key = make_key()
    assert second.joined().vpn.address, "its token was not lost"


def test_discovery_tells_of_the_tunnel_and_the_key_is_secret(master: TunnelMaster) -> None:
    authority = of_master(master.data).pem
    found = get(master.url, DISCOVERY, authority).body
    public = get(master.url, "/api/v1/vpn/public-key", authority).body.decode().strip()
    path = master.data / "identity" / "wireguard.key"
    secret = path.read_text().strip()
    assert public == public_key_of(secret)
    assert f'"public_key":"{public}"'.encode() in found
    assert f'"grpc":"{SERVER}:5"'.encode() in found
    assert path.stat().st_mode & 0o777 == 0o600
    files = [one for one in master.data.rglob("*") if one.is_file() and one != path]
    processes = map(str, master.wires.pids(master.wires.spaces["master"]))
    files += [Path("/proc", pid, what) for pid in processes for what in ("cmdline", "environ")]
    everything = [found, *(one.read_bytes() for one in files)]
    for mark in (secret.encode(), base64.b64decode(secret)):
        assert not any(mark in text for text in everything)


def test_a_tunnel_whose_daemon_was_killed_is_put_up_again(master: TunnelMaster) -> None:
    wires, node = master.wires, Node(master)
    vpn = node.joined().vpn
    daemon = next(
        pid
        for pid in wires.pids(wires.spaces["master"])
        if Path(f"/proc/{pid}/comm").read_text().strip() == "wireguard-go"
    )
    index = wires.index()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: wires.index() not in (0, index) or None, "the interface is there again")
    node.tunnel(vpn)
    until(lambda: wires.reaches(SERVER) or None, "the tunnel carries again")


def refusal(master: TunnelMaster, data: Path, *options: str) -> str:
    """The last line of a master that does not start, in the worker's namespace."""
    command = (
        *master.wires.enter("worker"),
        *(sys.executable, "-m", "procs.master", "serve", "--data", str(data)),
        *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--vpn", *options),
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stderr.strip().splitlines()[-1].removeprefix("hivemind-master: ")


def test_what_hinders_the_tunnel_is_said_at_the_start(master: TunnelMaster, tmp_path: Path) -> None:
    wires, node = master.wires, Node(master)
    node.tunnel(node.joined().vpn)
    interface = f"{wires.link}w"
    said = refusal(master, tmp_path / "m", "--vpn-interface", interface)
    assert said == f"{interface} is there already, and has another key: not ours"
    said = refusal(master, tmp_path / "m", "--vpn-interface", "eth0")
    assert said.startswith("eth0 is there, and can't be used: ")
    said = refusal(master, tmp_path / "m", "--vpn-range", "10.8.0.1/16")
    assert said == "--vpn-range 10.8.0.1/16: it must be a range such as 10.8.0.0/16, /8 to /30"


# ------------------------------------------------------------------ the table alone


def registered(connection: Any, name: str) -> str:
    asked = pb.NodeRegistrationRequest(node_name=name)
    return str(node_records.register(connection, asked, Place(name, "", 0, ""), 1.0)["node_id"])


@contextmanager
def table(tmp_path: Path) -> Iterator[Any]:
    database: Database = open_database(tmp_path / "master.db")
    try:
        with database._engine.begin() as connection:
            for name in "abcd":
                registered(connection, name)
            yield connection
    finally:
        database.close()


def test_an_address_is_given_out_once(tmp_path: Path) -> None:
    small, other = IPv4Network("10.8.0.0/29"), IPv4Network("10.9.0.0/30")
    with table(tmp_path) as connection:
        given = {n: vpn_records.assign(connection, n, f"key {n}", small) for n in "abc"}
        assert given == {"a": "10.8.0.2", "b": "10.8.0.3", "c": "10.8.0.4"}
        joining.revoke(connection, "a")
        assert vpn_records.assign(connection, "d", "", small) == "10.8.0.5"
        assert vpn_records.assign(connection, "b", "new", small) == "10.8.0.3"
        assert vpn_records.peers(connection, small) == {"new": "10.8.0.3", "key c": "10.8.0.4"}
        assert vpn_records.assign(connection, "b", "new", other) == "10.9.0.2", "another range"
        assert vpn_records.assign(connection, "c", "key c", other) is None, "it is full"
        assert vpn_records.peers(connection, other) == {"new": "10.9.0.2"}


def test_a_key_has_one_node_and_a_revoked_one_has_none(tmp_path: Path) -> None:
    network = IPv4Network("10.8.0.0/29")
    with table(tmp_path) as connection:
        vpn_records.assign(connection, "a", "key", network)
        with pytest.raises(KeyTaken, match="it is a's"):
            vpn_records.assign(connection, "b", "key", network)
        joining.revoke(connection, "a")
        vpn_records.assign(connection, "b", "key", network)
        joining.approve(connection, "a", 0, 1.0)
        assert vpn_records.peers(connection, network) == {"key": "10.8.0.3"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("AAAA", id="short"),
        pytest.param("A" * 43, id="no padding"),
        pytest.param("A" * 42 + "B=", id="bits that mean nothing"),
        pytest.param("A" * 43 + "=\n[Peer]", id="more than a key"),
        pytest.param("ä" * 43 + "=", id="no ASCII"),
    ],
)
def test_what_is_no_key(text: str) -> None:
    assert is_key(make_key())
    assert not is_key(text)
