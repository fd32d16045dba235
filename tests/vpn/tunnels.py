"""Two namespaces and the wire between them: a worker's machine, and a VPN's server with WireGuard.

The worker's side of the tests runs in threads that enter its namespace. Everything has names with
the test's pid; the home's name makes the interface's.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from procs.vpn.core import Pace
from procs.vpn.tunnel import own
from procs.vpn.tunnel_watch import TunnelWatch
from shared.messages import Tunnel, VpnPhase, VpnState, VpnWant
from shared.settings import load

T = TypeVar("T")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
EMPTY: Mapping[str, Path] = {}
LONGEST_S = 30.0
QUICK = Pace(look_s=0.15, probe_s=0.5, silent_s=2.0, ask_s=0.5)  # the wire's delay is none
SERVER, MOVED, WORKER = "10.77.0.1", "10.77.0.9", "10.77.0.2"
PORT = 51820
RANGE, SERVER_INSIDE, ADDRESS = "10.8.0.0/16", "10.8.0.1", "10.8.0.2/32"
SOCKETS = Path("/var/run/wireguard")
NUMBERS = count()

Key = tuple[str, str]  # private, public


def make_key() -> Key:
    private = subprocess.run(("wg", "genkey"), check=True, capture_output=True, text=True).stdout
    public = subprocess.run(
        ("wg", "pubkey"), input=private, check=True, capture_output=True, text=True
    ).stdout
    return private.strip(), public.strip()


def inside(space: str, call: Callable[[], T], hides: Mapping[str, Path] = EMPTY) -> T:
    """`call()` by a thread in the namespace; what it starts is there too. `hides`: a file → what
    stands in its place there."""
    found: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with Path(f"/run/netns/{space}").open("rb") as file:
                assert LIBC.setns(file.fileno(), CLONE_NEWNET) == 0
            if hides:
                _hide(hides)
            found.append(call())
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _hide(files: Mapping[str, Path]) -> None:
    """For this thread, and those that it makes, alone."""
    assert LIBC.unshare(CLONE_NEWNS) == 0
    assert LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    for file, other in files.items():
        assert LIBC.mount(bytes(other), file.encode(), None, MS_BIND, None) == 0


class Net:
    """The two machines. `server_key` may be changed while it runs."""

    def __init__(self) -> None:
        number = next(NUMBERS)
        self.worker, self.server = (f"hmv{os.getpid()}-{number}{side}" for side in "ws")
        self.interface = f"wgt{os.getpid() % 10**6}x{number}"
        self.server_key = make_key()

    def run(self, space: str, *command: str, text: str | None = None) -> str:
        done = subprocess.run(
            ("nsenter", f"--net=/run/netns/{space}", *command),
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def build(self) -> None:
        for space in (self.worker, self.server):
            subprocess.run(("ip", "netns", "add", space), check=True)
            self.run(space, "ip", "link", "set", "lo", "up")
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self.server)
        self.run(self.worker, "ip", "link", "add", "eth0", *peer)
        self.run(self.worker, "ip", "addr", "add", f"{WORKER}/24", "dev", "eth0")
        for address in (SERVER, MOVED):
            self.run(self.server, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        for space in (self.worker, self.server):
            self.run(space, "ip", "link", "set", "eth0", "up")
        self.run(self.worker, "ip", "route", "add", "default", "via", SERVER)
        self.start_server()

    def start_server(self, port: int = PORT) -> None:
        subprocess.run(
            ("nsenter", f"--net=/run/netns/{self.server}", "wireguard-go", self.interface),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, check=True,
        )  # fmt: skip
        self.set_server(self.server_key, port)
        self.run(self.server, "ip", "addr", "add", f"{SERVER_INSIDE}/16", "dev", self.interface)
        self.run(self.server, "ip", "link", "set", self.interface, "up")

    def set_server(self, key: Key, port: int = PORT) -> None:
        """Peers stay."""
        self.server_key = key
        self.run(
            self.server, "wg", "set", self.interface, "listen-port", str(port),
            "private-key", "/dev/stdin", text=key[0],
        )  # fmt: skip

    def has_peer(self, public_key: str, address: str = ADDRESS) -> None:
        """This one alone has that address."""
        peer = ("peer", public_key, "allowed-ips", address)
        self.run(self.server, "wg", "set", self.interface, *peer)

    def has_no_peer(self, public_key: str) -> None:
        self.run(self.server, "wg", "set", self.interface, "peer", public_key, "remove")

    def peers(self) -> dict[str, tuple[int, int]]:
        """Public key → bytes from it, bytes to it."""
        lines = self.run(self.server, "wg", "show", self.interface, "transfer").splitlines()
        return {key: (int(got), int(sent)) for key, got, sent in (line.split() for line in lines)}

    def tunnel(self, endpoint: str = f"{SERVER}:{PORT}") -> Tunnel:
        return Tunnel(
            address=ADDRESS,
            server_public_key=self.server_key[1],
            endpoint=endpoint,
            allowed_ips=(RANGE,),
        )

    def tunnel_of(self, *ranges: str) -> Tunnel:
        return msgspec.structs.replace(self.tunnel(), allowed_ips=ranges)

    def tunnel_of_all(self) -> Tunnel:
        return self.tunnel_of("0.0.0.0/0")

    def drop(self, *match: str) -> None:
        self.run(self.worker, "iptables", "-A", "INPUT", *match, "-j", "DROP")
        self.run(self.worker, "iptables", "-A", "OUTPUT", *match, "-j", "DROP")

    def drop_none(self) -> None:
        self.run(self.worker, "iptables", "-F")

    def remove(self) -> None:
        self.kill_daemons(self.interface)
        for space in (self.worker, self.server):
            gone = ("ip", "netns", "del", space)
            subprocess.run(gone, check=False, capture_output=True)

    @staticmethod
    def kill_daemons(interface: str) -> None:
        for pid in daemons(interface):
            os.kill(pid, signal.SIGKILL)
        (SOCKETS / f"{interface}.sock").unlink(missing_ok=True)


def daemons(interface: str) -> list[int]:
    """wireguard-go's of this interface."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"wireguard-go") and words[1:2] == [interface.encode()]:
            found.append(int(folder.name))
    return found


@contextmanager
def net() -> Iterator[Net]:
    made = Net()
    try:
        made.build()
        yield made
    finally:
        made.remove()


# ------------------------------------------------------------------ the worker's side


class Machine:
    """A worker's tunnel, without the process around it; its loop turns while one waits."""

    def __init__(self, net: Net, home: Path, pace: Pace = QUICK, **environment: str) -> None:
        self.net, self.home, self.pace = net, home, pace
        self.environment = {"HIVEMIND_HOME": str(home), "VPN": "auto", **environment}
        self.interface = own(home).name
        self.want: VpnWant | None = None
        self.node_id, self.key_after_unix_s = "", 0.0
        self.hides: dict[str, Path] = {}
        self._watch: TunnelWatch | None = None

    @property
    def path(self) -> Path:
        return self.home / "wg0.conf"

    def begin(self) -> None:
        """A life; the one before ends as by a kill, with nothing taken down."""
        if self._watch is not None:
            self._finish(self._watch)
        self._watch = None

    def _finish(self, watch: TunnelWatch) -> None:
        """A round's thread dies with its process; here it has to end by itself."""
        while watch._turning.began_s is not None:
            select.select([watch._turning.fileno()], [], [], LONGEST_S)
            watch._turning.result()
        if watch._bell is not None:
            watch._bell.close()

    @property
    def watch(self) -> TunnelWatch:
        if self._watch is None:
            self._watch = TunnelWatch(load(self.environment, self.home), self.pace)
        return self._watch

    def gone(self) -> None:
        """Its daemon ends with its interface."""
        deadline_s = time.monotonic() + LONGEST_S
        while self.daemons():
            assert time.monotonic() < deadline_s
            select.select([], [], [], 0.02)

    def assign(self, tunnel: Tunnel | None, public_key: str = "") -> None:
        self.want = VpnWant(at_s=time.monotonic(), tunnel=tunnel, public_key=public_key)

    def until(self, where: Callable[[VpnState], bool], longest_s: float = LONGEST_S) -> VpnState:
        """Turns the loop in the worker's namespace until its state is so."""
        return inside(self.net.worker, lambda: self._until(where, longest_s), self.hides)

    def _until(self, where: Callable[[VpnState], bool], longest_s: float) -> VpnState:
        deadline_s = time.monotonic() + longest_s
        state = None
        while (now_s := time.monotonic()) < deadline_s:
            self.watch.hear(self.want, self.node_id, self.key_after_unix_s)
            self.watch.beat(now_s)
            state = self.watch.state(now_s)
            if self.watch.has_turned and where(state):
                return state
            ready = select.select([*self.watch.descriptors()], [], [], 0.05)[0]
            self.watch.wake(set(ready), time.monotonic())
        raise AssertionError(f"not within {longest_s:.0f} s; the last was {state}")

    def up(self, longest_s: float = LONGEST_S) -> VpnState:
        return self.until(lambda state: state.phase is VpnPhase.UP, longest_s)

    def down(self, longest_s: float = LONGEST_S) -> VpnState:
        return self.until(lambda state: state.phase is VpnPhase.DOWN, longest_s)

    def join(self, tunnel: Tunnel | None = None) -> VpnState:
        """As with a master: it learns the key, then it assigns the tunnel."""
        key = self.known()
        self.assign(tunnel or self.net.tunnel(), key)
        return self.up()

    def known(self) -> str:
        """The server has this node's key, which is told before there is a tunnel."""
        self.assign(Tunnel(address=ADDRESS))
        key = self.until(lambda state: state.public_key != "").public_key
        self.net.has_peer(key)
        return key

    def run(self, *command: str) -> str:
        return self.net.run(self.net.worker, *command)

    def daemons(self) -> list[int]:
        return daemons(self.interface)

    def shown(self) -> str:
        return self.run("ip", "addr") if self.is_there() else ""

    def is_there(self) -> bool:
        return self.interface in self.run("ip", "link")

    def close(self) -> None:
        inside(self.net.worker, self.watch.close)
        self._watch = None


@contextmanager
def machine(pace: Pace = QUICK, **environment: str) -> Iterator[Machine]:
    home = Path(tempfile.mkdtemp(prefix="hmv-", dir="/tmp"))
    with net() as made:
        one = Machine(made, home, pace, **environment)
        try:
            yield one
        finally:
            one.close()
            Net.kill_daemons(one.interface)
            shutil.rmtree(home)


# ------------------------------------------------------------------ a master's HTTP


@contextmanager
def master(space: str, answers: dict[str, Any]) -> Iterator[str]:
    """On the loopback of the namespace: path → what it answers (None: 404); may be changed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path)
            body = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = inside(space, lambda: ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
