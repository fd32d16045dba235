"""Two network namespaces with a wire between: a master's and a worker's, for tunnels.

    test ──control── master 192.0.2.1 ──eth0── 192.0.2.2 worker

wireguard-go's sockets lie in one folder for all namespaces: interfaces carry our pid.
"""

import ctypes
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from procs.client.api import Master as Api

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
CLONE_NEWNET = 0x40000000
MASTER, WORKER = "192.0.2.1", "192.0.2.2"
PORT = 51820
CLOSED_PORT = 9  # nobody listens there
REACH_S = 1.0
CONTROLS = int(ipaddress.IPv4Address("198.18.0.0"))  # of 198.18.0.0/15, four for each pid


class TunnelWires:
    """Names and addresses of one test's own."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.spaces = {role: f"hmv{pid}-{role}" for role in ("master", "worker")}
        self.link = f"hmv{pid}"
        self.interface = f"hmv{pid}m"  # of the master's tunnel
        base = CONTROLS + pid % 2**15 * 4
        self.here, self.control = (str(ipaddress.IPv4Address(base + i)) for i in (1, 2))

    def enter(self, space: str) -> tuple[str, ...]:
        """Before a command: it runs there."""
        return ("nsenter", f"--net=/run/netns/{self.spaces[space]}")

    def run(self, space: str, *command: str, text: str = "") -> str:
        done = subprocess.run(
            (*self.enter(space), *command),
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def inside(self, space: str, call: Callable[[], T]) -> T:
        """`call()` by a thread in the namespace."""
        found: list[T] = []
        raised: list[Exception] = []

        def work() -> None:
            with Path(f"/run/netns/{self.spaces[space]}").open("rb") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0
            try:
                found.append(call())
            except (OSError, AssertionError) as err:
                raised.append(err)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return found[0]

    def build(self) -> None:
        for name in self.spaces.values():
            subprocess.run(("ip", "netns", "add", name), check=True)
        for role in self.spaces:
            self.run(role, "ip", "link", "set", "lo", "up")
        names = {role: f"/run/netns/{name}" for role, name in self.spaces.items()}
        wire = ("type", "veth", "peer", "name", "eth0", "netns", names["worker"])
        self.run("master", "ip", "link", "add", "eth0", *wire)
        wire = ("type", "veth", "peer", "name", "control", "netns", names["master"])
        subprocess.run(("ip", "link", "add", self.link, *wire), check=True)
        for role, address, device in (
            ("master", f"{MASTER}/24", "eth0"),
            ("worker", f"{WORKER}/24", "eth0"),
            ("master", f"{self.control}/30", "control"),
        ):
            self.run(role, "ip", "addr", "add", address, "dev", device)
            self.run(role, "ip", "link", "set", device, "up")
        for command in (("addr", "add", f"{self.here}/30", "dev"), ("link", "set", "up", "dev")):
            subprocess.run(("ip", *command, self.link), check=True)

    def remove(self) -> None:
        """With whoever still lives there: a daemon outlives who started it."""
        subprocess.run(("ip", "link", "del", self.link), check=False, capture_output=True)
        for name in self.spaces.values():
            for pid in self.pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)
        for path in Path("/var/run/wireguard").glob(f"{self.link}*.sock"):
            path.unlink()

    @staticmethod
    def pids(name: str) -> list[int]:
        shown = subprocess.run(
            ("ip", "netns", "pids", name), capture_output=True, text=True, check=False
        )
        return [int(word) for word in shown.stdout.split()]

    # -------------------------------------------------------------- a peer made by hand

    def peer(self, private_key: str, server_key: str, endpoint: str, address: str) -> None:
        """The worker's end, in the worker's namespace."""
        interface = f"{self.link}w"
        with suppress(AssertionError):
            self.run("worker", "ip", "link", "del", "dev", interface)
        subprocess.run(
            (*self.enter("worker"), "wireguard-go", interface),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
        text = (
            f"[Interface]\nPrivateKey={private_key}\n[Peer]\nPublicKey={server_key}\n"
            f"Endpoint={endpoint}\nAllowedIPs=10.8.0.0/16\nPersistentKeepalive=25\n"
        )
        self.run("worker", "wg", "setconf", interface, "/dev/stdin", text=text)
        self.run("worker", "ip", "addr", "add", address, "dev", interface)
        self.run("worker", "ip", "link", "set", "dev", interface, "up")
        self.run("worker", "ip", "route", "add", "10.8.0.0/16", "dev", interface)

    def reaches(self, address: str) -> bool:
        """Does the worker's kernel reach the other one at this address? A refusal is an answer."""

        def ask() -> bool:
            try:
                socket.create_connection((address, CLOSED_PORT), timeout=REACH_S).close()
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
            return True

        return self.inside("worker", ask)

    def handshakes(self) -> dict[str, int]:
        """Public key → when, at the master's end; 0: never."""
        shown = self.run("master", "wg", "show", self.interface, "latest-handshakes")
        return {line.split()[0]: int(line.split()[1]) for line in shown.splitlines()}

    def index(self) -> int:
        """Of the master's interface: another one is another tunnel; 0: there is none."""

        def look() -> int:
            with suppress(OSError):
                return socket.if_nametoindex(self.interface)
            return 0

        return self.inside("master", look)


class TunnelMaster:
    """`hivemind-master serve --vpn` in its namespace, on the same ports at each start."""

    def __init__(self, wires: TunnelWires, data: Path) -> None:
        self.wires, self.data, self.log = wires, data, data.parent / "master.log"
        self.grpc, self.http, self.join = (f"{wires.control}:{port}" for port in (5, 6, 7))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                (
                    *self.wires.enter("master"),
                    *(sys.executable, "-m", "procs.master", "serve", "--data", str(self.data)),
                    *("--listen", "0.0.0.0:5", "--http", "0.0.0.0:6", "--join", "0.0.0.0:7"),
                    *("--host", MASTER, "--vpn", "--vpn-port", str(PORT)),
                    *("--vpn-endpoint", f"{MASTER}:{PORT}"),
                    *("--vpn-interface", self.wires.interface, *options),
                ),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready.startswith(b"hivemind-master ready"), self.log.read_text()

    @property
    def url(self) -> str:
        return f"https://{self.http}"

    def api(self) -> Api:
        return Api(self.url, self.data / "identity" / "admin.token")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """In order; nothing where it has not begun, or was killed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.communicate()


@contextmanager
def tunnel_wires() -> Iterator[TunnelWires]:
    made = TunnelWires()
    try:
        made.build()
        yield made
    finally:
        made.remove()
