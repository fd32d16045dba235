"""How long the tunnel needs to heal, watched as often as in life; and what WireGuard takes.

    python -m tests.bench.tunnel [OUTAGE_S] [FILES]

Each fault between two network namespaces of its own, all at once: an outage lasts OUTAGE_S (60).
Then FILES (2000) generated configurations are given to `wg setconf`, and a tenth of them to
`wg-quick strip`. Root, wireguard-go and wireguard-tools are needed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from procs.vpn.conf import for_wg, written
from procs.vpn.core import Pace
from shared.messages import VpnPhase, VpnState
from tests.vpn.confs import made
from tests.vpn.tunnels import (
    MOVED,
    PORT,
    RANGE,
    SERVER,
    Machine,
    inside,
    machine,
    make_key,
    master,
    net,
)

LONGEST_S = 300.0


def up_after_s(one: Machine, since_s: float) -> float:
    one.up(LONGEST_S)
    return time.monotonic() - since_s


def noticed(one: Machine) -> None:
    one.down(LONGEST_S)


def daemon_killed(outage_s: float) -> float:
    with machine(Pace()) as one:
        before = one.join()
        (daemon,) = one.daemons()
        os.kill(daemon, signal.SIGKILL)
        began_s = time.monotonic()
        one.until(lambda state: state.handshake_unix_s > before.handshake_unix_s, LONGEST_S)
        return up_after_s(one, began_s)


def next_life(outage_s: float) -> float:
    with machine(Pace()) as one:
        one.join()
        one.begin()
        return up_after_s(one, time.monotonic())


def servers_key(outage_s: float) -> float:
    answers: dict[str, object] = {}
    with machine(Pace()) as one, master(one.net.worker, answers) as url:
        one.environment["MASTER_NODE_URL"] = url
        one.begin()
        one.join()
        one.net.set_server(make_key())
        key = one.net.server_key[1]
        answers["/api/v1/vpn/public-key"] = key
        answers["/.well-known/hivemind"] = {"wireguard": {
            "public_key": key, "endpoint": f"{SERVER}:{PORT}", "allowed_ips": [RANGE],
        }}  # fmt: skip
        began_s = time.monotonic()
        noticed(one)
        return up_after_s(one, began_s)


def endpoint_moved(outage_s: float) -> float:
    with tempfile.TemporaryDirectory() as folder, machine(Pace()) as one:
        hosts = Path(folder) / "hosts"
        hosts.write_text(f"{SERVER} vpn.test\n")
        one.hides = {"/etc/hosts": hosts}
        one.join(one.net.tunnel(f"vpn.test:{PORT}"))
        one.run("ip", "route", "add", "blackhole", SERVER)
        hosts.write_text(f"{MOVED} vpn.test\n")
        began_s = time.monotonic()
        noticed(one)
        return up_after_s(one, began_s)


def master_names_another(outage_s: float) -> float:
    with machine(Pace()) as one:
        state = one.join()
        began_s = time.monotonic()
        one.assign(one.net.tunnel(f"{MOVED}:{PORT}"), state.public_key)
        one.until(lambda _: MOVED in one.run("wg", "show", one.interface, "endpoints"))
        return up_after_s(one, began_s)


def link_down(outage_s: float) -> float:
    with machine(Pace()) as one:
        one.join()
        began_s = time.monotonic()
        one.run("ip", "link", "set", "eth0", "down")
        noticed(one)
        one.until(lambda _: time.monotonic() - began_s > outage_s, LONGEST_S)
        one.run("ip", "link", "set", "eth0", "up")
        return up_after_s(one, time.monotonic())


def packets_dropped(outage_s: float) -> float:
    with machine(Pace()) as one:
        one.join()
        began_s = time.monotonic()
        one.net.drop("-p", "udp", "--dport", str(PORT))
        noticed(one)
        one.until(lambda _: time.monotonic() - began_s > outage_s, LONGEST_S)
        one.net.drop_none()
        return up_after_s(one, time.monotonic())


def third_lost(outage_s: float) -> float:
    """The time that it was not up."""
    down_s, last_s = 0.0, time.monotonic()

    def count(state: VpnState) -> bool:
        nonlocal down_s, last_s
        now_s = time.monotonic()
        down_s += (now_s - last_s) if state.phase is not VpnPhase.UP else 0.0
        last_s = now_s
        return now_s > end_s

    with machine(Pace()) as one:
        one.join()
        one.net.drop("-p", "udp", "-m", "statistic", "--mode", "random", "--probability", "0.3")
        last_s = time.monotonic()
        end_s = last_s + outage_s
        one.until(count, LONGEST_S)
        return down_s


def key_changed(outage_s: float) -> float:
    with machine(Pace()) as one:
        old = one.join()
        one.key_after_unix_s = time.time()
        new = one.until(lambda state: state.public_key != old.public_key)
        one.net.has_no_peer(old.public_key)
        one.net.has_peer(new.public_key)
        began_s = time.monotonic()
        one.assign(one.net.tunnel(), new.public_key)
        one.until(lambda state: "waits" not in state.detail and state.phase is VpnPhase.UP)
        return time.monotonic() - began_s


FAULTS: dict[str, Callable[[float], float]] = {
    "wireguard-go is killed": daemon_killed,
    "the vpn process is killed: its next life, until UP": next_life,
    "the server's key changes, the master tells it over HTTPS": servers_key,
    "the endpoint's name leads elsewhere": endpoint_moved,
    "the master's assignment names another endpoint": master_names_another,
    "the link is down; from its return": link_down,
    "all packets are dropped; from the end of it": packets_dropped,
    "three in ten packets are lost each way; not UP for": third_lost,
    "the node's key is changed; from the master's knowing it": key_changed,
}


def accepted(files: int) -> None:
    """Raises where WireGuard refuses one."""
    with net() as there, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hmb0.conf"
        path.touch(mode=0o600)

        def give(seed: int) -> None:
            one = made(seed)
            conf = written(one.interface, one.peers, 1.0)
            ends = {p.endpoint: ("192.0.2.1", p.endpoint[1]) for p in one.peers if p.endpoint}
            text = for_wg(conf, ends, 0)
            subprocess.run(
                ("wg", "setconf", there.interface, "/dev/stdin"), input=text, text=True, check=True
            )
            if seed % 10 == 0:
                path.write_text(conf.text)
                subprocess.run(
                    ("wg-quick", "strip", path), check=True, stdout=subprocess.DEVNULL
                )

        def give_all() -> None:
            for seed in range(files):
                give(seed)

        inside(there.server, give_all)


def main(outage_s: float = 60.0, files: int = 2000) -> None:
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        healing = {name: pool.submit(fault, outage_s) for name, fault in FAULTS.items()}
        for name, healed in healing.items():
            print(f"{healed.result():6.1f} s  {name}", flush=True)
    accepted(files)
    print(f"{files} generated configurations: wg takes all, wg-quick each tenth")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 60.0, int(given[1]) if given[1:] else 2000)
