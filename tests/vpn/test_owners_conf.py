"""wg0.conf as its owner wrote it; what is refused of it; and the machine's own traffic."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from procs.vpn import conf_file
from procs.vpn.conf import parse
from procs.vpn.conf_file import ABSENT, ConfFileError
from shared.messages import VpnPhase
from tests.vpn.test_tunnel import passes
from tests.vpn.tunnels import (
    ADDRESS,
    PORT,
    RANGE,
    SERVER,
    SERVER_INSIDE,
    WORKER,
    Machine,
    inside,
    machine,
    make_key,
)

FAR = "203.0.113.7"
CONTAINER = "172.31.0.2"


def owners(one: Machine, *lines: str, ranges: str = RANGE, mode: int = 0o600) -> str:
    """A file of the owner's own; its public key."""
    private, public = make_key()
    one.path.touch(mode=0o600)
    one.path.chmod(mode)
    one.path.write_text("\n".join((
        "# my own", "[Interface]", f"PrivateKey = {private}", f"Address = {ADDRESS}", *lines,
        "[Peer]", f"PublicKey = {one.net.server_key[1]}", f"Endpoint = {SERVER}:{PORT}",
        f"AllowedIPs = {ranges}", "",
    )))  # fmt: skip
    one.net.has_peer(public)
    return public


def test_an_owners_file_is_used_as_it_is() -> None:
    with machine() as one:
        public = owners(one, "MTU = 1300", "PostUp = touch /tmp/ran", "DNS = 9.9.9.9")
        text = one.path.read_text()
        one.assign(one.net.tunnel("192.0.2.1:1"))
        one.key_after_unix_s = 2e9
        state = one.up()
        assert (state.public_key, state.key_is_owners) == (public, True)
        assert "line 6: PostUp: commands are not run" in state.detail
        assert "mtu 1300" in one.run("ip", "link", "show", one.interface)
        passes(one)
        one.until(lambda state: state.at_s > 0)
        assert one.path.read_text() == text
        assert [path.name for path in one.home.iterdir()] == ["wg0.conf"]


def test_a_change_by_the_owner_is_heeded_and_addresses_too() -> None:
    with machine() as one:
        one.join()
        text = one.path.read_text().replace("10.8.0.2/32", "10.8.0.77/32")
        one.path.write_text(text)
        state = one.until(lambda state: state.address == "10.8.0.77" and state.key_is_owners)
        one.net.has_peer(state.public_key, "10.8.0.77/32")
        shown = one.run("ip", "addr", "show", one.interface)
        assert "10.8.0.77/32" in shown
        assert "10.8.0.2/32" not in shown
        one.assign(one.net.tunnel("192.0.2.1:1"))
        one.up()
        assert one.path.read_text() == text, "changed by hand it is the owner's"


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        pytest.param(lambda path: path.chmod(0o640), "mode 0640): chmod 600", id="mode"),
        pytest.param(lambda path: path.chmod(0o602), "mode 0602): chmod 600", id="writable"),
        pytest.param(
            lambda path: path.write_text(path.read_text().replace("10.8.0.0/16", "10.8.0.0/99")),
            "wg0.conf, line 11: AllowedIPs must be", id="broken",
        ),
        pytest.param(lambda path: path.write_bytes(b"\xff"), "line 1: there is a byte", id="bytes"),
    ],
)  # fmt: skip
def test_a_refused_file_leaves_the_tunnel_as_it_is(
    spoil: Callable[[Path], object], word: str
) -> None:
    with machine() as one:
        before = one.join()
        spoil(one.path)
        kept = one.path.read_bytes()
        state = one.until(lambda state: word in state.detail)
        assert (state.phase, state.public_key) == (VpnPhase.UP, before.public_key)
        one.assign(one.net.tunnel("192.0.2.1:1"))
        one.until(lambda state: word in state.detail)
        assert one.path.read_bytes() == kept
        passes(one)


def test_a_refused_file_at_the_beginning_is_said() -> None:
    with machine() as one:
        owners(one, mode=0o644)
        one.assign(one.net.tunnel())
        assert "may be read or written by others" in one.down().detail
        assert not one.is_there()
        one.path.chmod(0o600)
        one.up()


def test_only_files_of_ones_own_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.mkdir()
    assert "is not a file" in conf_file.read(path, ABSENT).problem
    path.rmdir()
    path.touch(0o600)
    os.chown(path, 12345, 12345)
    assert "belongs to another user" in conf_file.read(path, ABSENT).problem


def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.touch(0o600)
    path.write_text(f"[Interface]\nPrivateKey = {make_key()[0]}\n")
    kept = path.read_text()
    with pytest.raises(ConfFileError, match="it stays"):
        conf_file.write(path, parse(kept), ABSENT)
    assert path.read_text() == kept


# ------------------------------------------------------------------ the machine's own traffic


def with_container(one: Machine) -> None:
    """A bridge with a container, as Docker makes them; the far host beyond the server."""
    one.run("sh", "-ec", """
        echo 1 > /proc/sys/net/ipv4/ip_forward
        ip link add br0 type veth peer name c0
        ip addr add 172.31.0.1/24 dev br0
        ip link set br0 up
        ip link set c0 up
    """)
    one.net.run(one.net.server, "ip", "addr", "add", f"{FAR}/32", "dev", "lo")
    one.net.run(one.net.server, "ip", "route", "add", "172.31.0.0/24", "via", WORKER)


def way(one: Machine, address: str, *more: str) -> str:
    return one.run("ip", "route", "get", address, *more)


def test_a_full_tunnel_takes_what_the_machine_sends_and_nothing_else() -> None:
    with machine() as one:
        with_container(one)
        one.join(one.net.tunnel_of_all())
        passes(one)
        dev = f"dev {one.interface} "
        assert dev in way(one, FAR)
        assert dev in way(one, FAR, "from", "10.8.0.2")
        assert dev not in way(one, FAR, "from", WORKER), "answers to who came by that way"
        assert "dev eth0 " in way(one, FAR, "from", CONTAINER, "iif", "br0"), "containers"
        assert "dev br0 " in way(one, CONTAINER), "to containers"
        assert "dev eth0 " in way(one, "10.77.0.50"), "the LAN"
        mark = one.run("wg", "show", one.interface, "fwmark").strip()
        for end in (SERVER, FAR):
            assert "dev eth0 " in way(one, end, "mark", mark), "the tunnel's own packets"
        with inside(one.net.server, lambda: socket.create_server((FAR, 0))) as listener:
            port = listener.getsockname()[1]
            ask = lambda: socket.create_connection((FAR, port), timeout=10)  # noqa: E731
            with inside(one.net.worker, ask) as asking, listener.accept()[0] as answering:
                assert answering.getpeername()[0] == "10.8.0.2"
                assert asking.getsockname()[0] == "10.8.0.2"
        with inside(one.net.worker, lambda: socket.create_server((WORKER, 0))) as listener:
            port = listener.getsockname()[1]
            call = lambda: socket.create_connection((WORKER, port), 10, (FAR, 0))  # noqa: E731
            with inside(one.net.server, call) as calling, listener.accept()[0] as answering:
                answering.sendall(b"!")
                assert calling.recv(1) == b"!", "who came from outside is answered there"


def test_a_range_that_holds_the_endpoint_does_not_swallow_it() -> None:
    with machine() as one:
        state = one.join()
        one.net.run(
            one.net.server, "wg", "set", one.net.interface, "peer", state.public_key,
            "allowed-ips", ADDRESS,
        )  # fmt: skip
        one.assign(one.net.tunnel_of("10.0.0.0/8"), state.public_key)
        one.until(lambda _: one.run("ip", "rule").count("\n") > 3)
        one.until(lambda state: state.phase is VpnPhase.UP)
        passes(one)
        one.assign(one.net.tunnel(), state.public_key)
        one.until(lambda _: one.run("ip", "rule").count("\n") == 3)
        passes(one)
        assert RANGE in one.run("ip", "route")


def test_a_route_of_the_machines_is_never_replaced() -> None:
    with machine() as one:
        one.run("ip", "route", "add", RANGE, "via", SERVER)
        one.assign(one.net.tunnel(), one.known())
        state = one.until(lambda state: "a route for 10.8.0.0/16 already" in state.detail)
        assert state.phase is VpnPhase.DOWN
        assert f"{RANGE} via {SERVER} dev eth0" in one.run("ip", "route")
        one.run("ip", "route", "del", RANGE)
        one.up()


def test_mtu_follows_the_link_to_the_other_end() -> None:
    with machine() as one:
        one.run("ip", "link", "set", "eth0", "mtu", "1400")
        one.join()
        assert "mtu 1320" in one.run("ip", "link", "show", one.interface)


def test_what_others_take_away_is_set_again() -> None:
    with machine() as one:
        one.join()
        for command in (
            ("ip", "addr", "flush", "dev", one.interface),
            ("ip", "link", "set", one.interface, "down"),
            ("ip", "link", "del", one.interface),
        ):
            one.run(*command)
            one.until(lambda _: "10.8.0.2/32" in one.shown() and "state UNKNOWN" in one.shown())
            one.until(lambda _: RANGE in one.run("ip", "route"))
        one.up()
        assert SERVER_INSIDE in way(one, SERVER_INSIDE)


# ------------------------------------------------------------------ what is missing


def test_without_the_tools_it_is_said() -> None:
    with machine() as one:
        one.hides = {"/usr/bin/wg": Path("/dev/null")}
        one.assign(one.net.tunnel())
        state = one.down()
        assert "the command wg is missing: install the package wireguard-tools" in state.detail
        one.hides = {"/usr/bin/wireguard-go": Path("/dev/null")}
        one.until(lambda state: "wireguard-go is missing: install the package" in state.detail)


def test_without_a_tun_device_it_is_said(tmp_path: Path) -> None:
    with machine() as one:
        one.hides = {"/dev/net": tmp_path}
        one.assign(one.net.tunnel())
        state = one.until(lambda state: "/dev/net/tun can't be used" in state.detail)
        assert state.phase is VpnPhase.DOWN
        one.hides = {}
        one.net.has_peer(state.public_key)
        one.up()
