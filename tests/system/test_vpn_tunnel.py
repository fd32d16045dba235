"""A worker without a wg0.conf and a master with a VPN, each on a machine of its own: once joined,
all of their talk runs through the tunnel, which the worker has made by itself.

The worker's processes and the master run in namespaces with one wire between; the engine is not.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procs.client.api import Master as Api
from shared.bus import Bus
from shared.messages import LinkPhase, LinkState, OwnerWant, VpnPhase, VpnState
from tests.fakes.supervised import Supervised, supervised, until
from tests.fakes.tunnel_wires import MASTER, TunnelMaster, TunnelWires, tunnel_wires
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

PROGRAMS = ("master_link", "executor", "monitor@host", "vpn", "watchdog")
OWN, SERVER, PORT = "10.8.0.2", "10.8.0.1", 50070
LOG_BYTES = 300_000  # what a task prints, past all else that is said meanwhile
ONLY_WIREGUARD = """
table inet only {
  chain input {
    type filter hook input priority 0;
    iifname "eth0" udp dport != 51820 drop
    iifname "eth0" meta l4proto tcp drop
  }
}
"""


@dataclass(frozen=True)
class World:
    """A node that has joined, and who is at the other end."""

    worker: Supervised
    master: TunnelMaster
    api: Api

    @property
    def wires(self) -> TunnelWires:
        return self.master.wires

    def node(self) -> dict[str, Any]:
        (node,) = self.api.get("/api/v1/nodes")["nodes"]
        found: dict[str, Any] = node
        return found

    def received_bytes(self) -> int:
        """By the master's end of the tunnel."""
        shown = self.wires.run("master", "wg", "show", self.wires.interface, "transfer")
        return int(shown.split()[1])

    def ran(self, *command: str) -> dict[str, Any]:
        """The task, once it has ended."""
        task_id = str(self.api.post("/api/v1/tasks", {"command": list(command)})["task_id"])

        def ended() -> dict[str, Any] | None:
            task = self.api.get(f"/api/v1/tasks/{task_id}")
            return task if task["ended"] else None

        return until(ended, f"{task_id} ends")


@contextmanager
def world(engine: PrivateEngine, folder: Path, **settings: Any) -> Iterator[World]:
    with tunnel_wires() as wires:
        master = TunnelMaster(wires, folder / "data")
        try:
            master.start("--trust-level", "3")
            with closing(master.api()) as api:
                token = str(api.order("/api/v1/tokens", {"trust_level": 3})["token"])
                chosen: dict[str, Any] = {
                    "MASTER_NODE_URL": f"https://{MASTER}:6",
                    "MASTER_JOIN_TOKEN": token,
                    "DOCKER_HOST": engine.host,
                    "TASK_IMAGE": engine.task_image,
                    "EGRESS": "off",
                    "TASK_LISTEN": f"vpn:{PORT}",
                    **settings,
                }
                with supervised(PROGRAMS, launcher=wires.enter("worker"), **chosen) as worker:
                    try:
                        yield World(worker, master, api)
                    except AssertionError as err:
                        raise AssertionError(f"{err}\n{worker.logs()}") from err
        finally:
            master.stop()


def test_all_talk_runs_through_the_tunnel_that_the_worker_made(
    engine: PrivateEngine, tmp_path: Path
) -> None:
    with world(engine, tmp_path, VPN="required") as w:
        worker, wires = w.worker, w.wires
        state = worker.next(VpnState, lambda s: s.phase is VpnPhase.UP)
        assert state.address == OWN
        worker.next(LinkState, lambda s: s.phase is LinkPhase.CONNECTED)
        assert wires.handshakes()[state.public_key] > 0
        conf = worker.home / "wg0.conf"
        assert conf.stat().st_mode & 0o777 == 0o600

        rotated = rotate(w, state)

        wires.run("master", "nft", "-f", "-", text=ONLY_WIREGUARD)
        until(lambda: w.node()["task_endpoint"] == f"{OWN}:{PORT}" or None, "it may be dialled")
        before = w.received_bytes()
        task = w.ran("python3", "-c", f"print('x' * {LOG_BYTES})")
        assert task["state"] == "succeeded", task
        assert w.received_bytes() - before > LOG_BYTES
        assert has_dialled(w)

        index, seen = interface_index(w, state.interface), w.node()["heard_unix_s"]
        killed = worker.pids()["vpn"]
        os.kill(killed, signal.SIGKILL)
        worker.back("vpn", killed)
        assert interface_index(w, state.interface) == index
        worker.next(VpnState, lambda s: s.phase is VpnPhase.UP)
        until(lambda: w.node()["heard_unix_s"] > seen or None, "it beats on")
        assert "the link is down" not in worker.logs()

        w.master.kill()
        w.master.start()
        until(lambda: w.node()["channel_open"] or None, "the node is back")
        assert wires.handshakes().keys() == {rotated.public_key}
        assert w.ran("true")["state"] == "succeeded"
        assert interface_index(w, state.interface) == index

        w.api.order(f"/api/v1/nodes/{w.node()['node_id']}/revoke", {})
        assert wires.handshakes() == {}
        assert not wires.reaches(SERVER)


def rotate(world: World, before: VpnState) -> VpnState:
    """The owner asks for a new key: the master is told, and the tunnel goes on with it."""
    with closing(Bus(world.worker.home, "web")) as web:

        def changed() -> VpnState | None:
            wish = OwnerWant(at_s=time.monotonic(), tunnel_key_after_unix_s=time.time() - 1)
            web.publish(wish)
            web.drain()
            state = world.worker.next(VpnState)
            return state if state.public_key != before.public_key else None

        after = until(changed, "there is a new key")
    until(lambda: world.wires.handshakes().get(after.public_key) or None, "a handshake with it")
    world.worker.next(VpnState, lambda s: s.phase is VpnPhase.UP)
    assert before.public_key not in world.wires.handshakes()
    return after


def has_dialled(world: World) -> bool:
    calls = world.wires.run("master", "ss", "-Htn", "state", "established", "dst", OWN)
    said = world.master.log.read_text()
    return f"{OWN}:{PORT}" in calls.replace("]", "") and "does not answer" not in said


def interface_index(world: World, name: str) -> int:
    shown = world.wires.run("worker", "ip", "-o", "link", "show", "dev", name)
    found = re.match(r"(\d+):", shown)
    assert found is not None
    return int(found[1])
