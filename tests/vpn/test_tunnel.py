"""A tunnel between two namespaces: brought up, adopted, healed; watched more often than in life."""

import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import msgspec
import pytest

from procs.vpn import wg
from procs.vpn.conf import parse
from shared.messages import VpnPhase
from tests.vpn.tunnels import (
    ADDRESS,
    MOVED,
    PORT,
    RANGE,
    SERVER,
    SERVER_INSIDE,
    WORKER,
    Machine,
    inside,
    machine,
    make_key,
    master,
)

DISCOVERY, PUBLIC_KEY = "/.well-known/hivemind", "/api/v1/vpn/public-key"


def told(what: str, began_s: float) -> None:
    print(f"{what}: healed after {time.monotonic() - began_s:.1f} s")


def passes(one: Machine) -> None:
    """Something goes through the tunnel and comes back, by its server's counters."""
    with inside(one.net.server, lambda: socket.create_server((SERVER_INSIDE, 0))) as listener:
        port = listener.getsockname()[1]

        def ask() -> socket.socket:
            return socket.create_connection((SERVER_INSIDE, port), timeout=10)

        before = one.net.peers()
        with inside(one.net.worker, ask) as asking, listener.accept()[0] as answering:
            assert answering.getpeername()[0] == ADDRESS.partition("/")[0]
            answering.sendall(bytes(10_000))
            with asking.makefile("rb") as file:
                assert len(file.read(10_000)) == 10_000
    (key,) = before
    assert one.net.peers()[key][1] - before[key][1] >= 10_000


# ------------------------------------------------------------------ the flow


def test_from_no_file_to_a_proven_tunnel() -> None:
    answers: dict[str, object] = {}
    with machine() as one, master(one.net.worker, answers) as url:
        one.environment["MASTER_NODE_URL"] = url
        one.begin()
        one.until(lambda state: state.phase is VpnPhase.WAITING and not state.public_key)
        key = one.net.server_key[1]
        answers |= {
            DISCOVERY: {"wireguard": {
                "public_key": key, "endpoint": f"{SERVER}:{PORT}", "allowed_ips": [RANGE],
            }},
            PUBLIC_KEY: f"{key}\n",
        }  # fmt: skip
        one.assign(None)
        state = one.until(lambda state: state.public_key != "")
        assert parse(one.path.read_text()).peers == (), "the key alone"
        one.net.has_peer(state.public_key)
        one.assign(one.net.tunnel(), state.public_key)
        state = one.up()
        assert (state.address, state.interface) == ("10.8.0.2", one.interface)
        assert time.time() - state.handshake_unix_s < 30
        assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
        passes(one)
        assert one.run("ip", "-4", "route", "show", "dev", one.interface).split() == [
            RANGE, "proto", "static", "scope", "link",
        ]  # fmt: skip
        assert one.run("ip", "rule").count("\n") == 3, "the machine's own"
        assert not [path.name for path in one.home.iterdir() if path.name.startswith(".wg0")]


def test_a_master_that_assigns_nothing_gets_a_derived_address() -> None:
    answers: dict[str, object] = {}
    with machine() as one, master(one.net.worker, answers) as url:
        one.environment["MASTER_NODE_URL"] = url
        one.begin()
        key, one.node_id = one.net.server_key[1], "node-7"
        answers[PUBLIC_KEY] = key
        answers[DISCOVERY] = {"wireguard": {
            "public_key": key, "endpoint": f"{SERVER}:{PORT}", "allowed_ips": [RANGE],
        }}  # fmt: skip
        one.assign(None)
        state = one.until(lambda state: state.public_key != "")
        one.net.has_peer(state.public_key, RANGE)
        one.assign(None, state.public_key)
        assert re.fullmatch(r"10\.8\.\d+\.\d+", one.up().address)


@pytest.mark.parametrize(
    ("answers", "phase", "word"),
    [
        pytest.param({DISCOVERY: {}}, VpnPhase.NONE, "no tunnel", id="the master has no VPN"),
        pytest.param({DISCOVERY: []}, VpnPhase.WAITING, "is wrong", id="no object"),
        pytest.param({}, VpnPhase.WAITING, "answers 404", id="no document"),
        pytest.param(
            {DISCOVERY: {"wireguard": {"public_key": make_key()[1]}}, PUBLIC_KEY: make_key()[1]},
            VpnPhase.WAITING, "two public keys", id="two keys",
        ),
        pytest.param(
            {DISCOVERY: {"wireguard": {}}, PUBLIC_KEY: "none"},
            VpnPhase.WAITING, "must be a key", id="no key",
        ),
    ],
)  # fmt: skip
def test_a_master_without_a_usable_offer(
    answers: dict[str, object], phase: VpnPhase, word: str
) -> None:
    with machine() as one, master(one.net.worker, answers) as url:
        one.environment["MASTER_NODE_URL"] = url
        one.begin()
        one.assign(None)
        assert one.until(lambda state: word in state.detail).phase is phase
        assert not one.path.exists()


EVIL = "10.0.0.1:1\nPostUp = touch /tmp/evil"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"endpoint": EVIL}, id="endpoint"),
        pytest.param({"address": f"{ADDRESS}\nPostUp = id"}, id="address"),
        pytest.param({"server_public_key": f"{make_key()[1]}\n[Peer]"}, id="key"),
        pytest.param({"allowed_ips": (f"{RANGE}\nPostUp = id",)}, id="range"),
    ],
)
def test_no_line_of_the_file_is_the_masters_to_choose(change: dict[str, str]) -> None:
    with machine() as one:
        one.assign(msgspec.structs.replace(one.net.tunnel(), **change))
        one.until(lambda state: "the master's word of the tunnel can't be used" in state.detail)
        assert not one.path.exists()
        assert not one.is_there()


# ------------------------------------------------------------------ what outlives what


def test_a_life_after_a_kill_adopts_the_tunnel() -> None:
    with machine() as one:
        before = one.join()
        daemons, sent = one.daemons(), one.net.peers()[before.public_key]
        port = one.run("wg", "show", one.interface, "listen-port")
        one.begin()
        began_s = time.monotonic()
        after = one.up()
        print(f"adopted after {time.monotonic() - began_s:.2f} s")
        assert one.daemons() == daemons
        assert after.handshake_unix_s == before.handshake_unix_s
        assert one.run("wg", "show", one.interface, "listen-port") == port
        assert (after.public_key, after.address) == (before.public_key, before.address)
        assert one.net.peers()[before.public_key] >= sent
        passes(one)


def test_at_an_orderly_end_the_tunnel_goes() -> None:
    with machine() as one:
        one.join(one.net.tunnel_of_all())
        assert one.is_there()
        one.close()
        assert not one.is_there()
        assert one.run("ip", "rule").count("\n") == 3
        assert one.path.exists()
        one.gone()


def test_off_takes_away_what_a_killed_life_left() -> None:
    with machine() as one:
        one.join(one.net.tunnel_of_all())
        one.environment["VPN"] = "off"
        one.begin()
        state = one.until(lambda state: state.phase is VpnPhase.OFF)
        assert (state.interface, state.address, state.public_key) == ("", "", "")
        assert not one.is_there()
        assert one.run("ip", "rule").count("\n") == 3


def test_a_daemon_that_is_killed_is_back_at_once() -> None:
    with machine() as one:
        one.join()
        (daemon,) = one.daemons()
        os.kill(daemon, signal.SIGKILL)
        began_s = time.monotonic()
        one.until(lambda _: one.daemons() not in ([], [daemon]) and RANGE in one.run("ip", "route"))
        one.up()
        told("wireguard-go killed", began_s)
        passes(one)


def test_the_kernels_wireguard_is_looked_at_by_the_command() -> None:
    """Here it tells of the daemon, in the same words."""
    with machine() as one:
        one.join()
        dump = one.run("wg", "show", one.interface, "dump")
        by_socket = inside(one.net.worker, lambda: wg.look(one.interface))
        assert by_socket is not None
        by_command = wg.look_at_kernel(dump)
        assert by_command.handshake_unix_s == int(by_socket.handshake_unix_s) > 0
        assert by_socket.received_bytes >= by_command.received_bytes > 0


# ------------------------------------------------------------------ healing


def test_the_servers_key_changes() -> None:
    answers: dict[str, object] = {}
    with machine() as one, master(one.net.worker, answers) as url:
        one.environment["MASTER_NODE_URL"] = url
        one.begin()
        one.join()
        one.net.set_server(make_key())
        key = one.net.server_key[1]
        answers[PUBLIC_KEY] = key
        answers[DISCOVERY] = {"wireguard": {
            "public_key": key, "endpoint": f"{SERVER}:{PORT}", "allowed_ips": [RANGE],
        }}  # fmt: skip
        began_s = time.monotonic()
        one.down()
        one.up()
        told("the server's key changed", began_s)
        assert parse(one.path.read_text()).peers[0].public_key == key
        passes(one)


def test_the_endpoints_name_leads_elsewhere(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{SERVER} vpn.test\n")
    with machine() as one:
        one.hides = {"/etc/hosts": hosts}
        one.join(one.net.tunnel(f"vpn.test:{PORT}"))
        one.net.run(one.net.worker, "ip", "route", "add", "blackhole", SERVER)
        hosts.write_text(f"{MOVED} vpn.test\n")
        began_s = time.monotonic()
        one.down()
        one.up()
        told("the endpoint's name leads elsewhere", began_s)
        assert MOVED in one.run("wg", "show", one.interface, "endpoints")
        passes(one)


def test_a_name_that_nobody_knows_is_asked_for_again(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    with machine() as one:
        one.hides = {"/etc/hosts": hosts, "/etc/resolv.conf": hosts}
        one.assign(one.net.tunnel(f"vpn.test:{PORT}"), one.known())
        one.until(lambda state: f"no address is known of vpn.test:{PORT}" in state.detail)
        hosts.write_text(f"{SERVER} vpn.test\n")
        one.up()


def test_the_master_names_another_endpoint() -> None:
    with machine() as one:
        state = one.join()
        began_s = time.monotonic()
        one.assign(one.net.tunnel(f"{MOVED}:{PORT}"), state.public_key)
        one.until(lambda state: MOVED in state.detail and state.phase is VpnPhase.UP)
        told("the master names another endpoint", began_s)
        passes(one)


def test_the_link_is_down_for_a_while() -> None:
    with machine() as one:
        one.join()
        one.run("ip", "link", "set", "eth0", "down")
        one.down()
        one.run("ip", "link", "set", "eth0", "up")
        one.run("ip", "route", "add", "default", "via", SERVER)
        began_s = time.monotonic()
        one.up()
        told("the link was down", began_s)
        passes(one)


def test_all_packets_are_dropped_for_a_while() -> None:
    with machine() as one:
        one.join()
        one.net.drop("-p", "udp", "--dport", str(PORT))
        one.down()
        one.net.drop_none()
        began_s = time.monotonic()
        one.up()
        told("packets were dropped", began_s)


def test_a_third_of_all_packets_is_lost() -> None:
    with machine() as one:
        one.join()
        one.net.drop("-p", "udp", "-m", "statistic", "--mode", "random", "--probability", "0.3")
        began_s = time.monotonic()
        one.until(lambda _: time.monotonic() - began_s > one.pace.silent_s)
        one.up()


def test_the_server_listens_elsewhere_and_the_owner_says_so() -> None:
    """`wg syncconf`: what stays the same loses nothing."""
    with machine() as one:
        one.join()
        one.path.write_text(one.path.read_text().replace("Keepalive = 25", "Keepalive = 24"))
        handshake = one.run("wg", "show", one.interface, "latest-handshakes")
        one.until(lambda _: "24" in one.run("wg", "show", one.interface, "persistent-keepalive"))
        assert one.run("wg", "show", one.interface, "latest-handshakes") == handshake
        passes(one)
        assert WORKER in one.run("ip", "addr")
