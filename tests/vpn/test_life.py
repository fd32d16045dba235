"""The vpn process under a real supervisord, a server on the other side: what outlives what; that
nobody else ever sees a private key."""

import base64
import http.client
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from procs.vpn.conf import parse
from procs.vpn.tunnel import own
from shared.bus import Bus, Tap
from shared.messages import LinkState, Tunnel, VpnPhase, VpnState, VpnWant
from shared.owner_socket import NoAnswerError, RefusedError, ask_owner
from tests.fakes.supervised import Supervised, supervised, until
from tests.vpn.confs import GOOD
from tests.vpn.tunnels import ADDRESS, Net, daemons, inside, make_key, net
from tests.web.conftest import free_port

WRAPPED = ("wg", "ip", "wireguard-go", "nft")
MISPLACED = ("{key}", "MTU = {key}")
WRAPPER = """#!/bin/sh
{{ echo "$0 $*"; env; tr '\\0' ' ' </proc/$$/cmdline; }} >>{record}
exec {real} "$@"
"""


class Link:
    """What master_link would say, said again and again."""

    def __init__(self, home: Path) -> None:
        self.want: VpnWant = VpnWant(at_s=0.0, tunnel=Tunnel(address=ADDRESS))
        self._home, self._end = home, threading.Event()
        self._thread = threading.Thread(target=self._speak)
        self._thread.start()

    def _speak(self) -> None:
        bus = Bus(self._home, "master_link")
        while not self._end.is_set():
            now_s = time.monotonic()
            bus.publish(msgspec.structs.replace(self.want, at_s=now_s))
            bus.publish(LinkState(at_s=now_s, node_id="n1"))
            bus.wait(0.1)
        bus.close()

    def assign(self, tunnel: Tunnel, public_key: str) -> None:
        self.want = VpnWant(at_s=0.0, tunnel=tunnel, public_key=public_key)

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@contextmanager
def life(programs: list[str], **settings: Any) -> Iterator[tuple[Supervised, Net, Link]]:
    with net() as made, ExitStack() as stack:
        launcher = ("nsenter", f"--net=/run/netns/{made.worker}")
        worker = stack.enter_context(
            supervised(programs, launcher=launcher, EGRESS="off", **settings)
        )
        worker.next(VpnState)
        link = Link(worker.home)
        stack.callback(link.close)
        stack.callback(Net.kill_daemons, own(worker.home).name)
        yield worker, made, link
        worker.stop()
        assert own(worker.home).name not in made.run(made.worker, "ip", "link"), "it goes in order"
        until(lambda: daemons(own(worker.home).name) == [] or None, "its daemon ends")


def joined(worker: Supervised, made: Net, link: Link) -> VpnState:
    state = worker.next(VpnState, lambda state: state.public_key != "")
    made.has_peer(state.public_key)
    link.assign(made.tunnel(), state.public_key)
    return up(worker)


def up(worker: Supervised) -> VpnState:
    return worker.next(VpnState, lambda state: state.phase is VpnPhase.UP)


def test_the_tunnel_outlives_a_kill_and_is_adopted() -> None:
    with life(["vpn"]) as (worker, made, link):
        before = joined(worker, made, link)
        daemon, pid = daemons(before.interface), worker.pids()["vpn"]
        heard = made.peers()[before.public_key]
        os.kill(pid, signal.SIGKILL)
        assert before.interface in made.run(made.worker, "ip", "link")
        worker.back("vpn", pid)
        began_s = time.monotonic()
        after = up(worker)
        print(f"adopted {time.monotonic() - began_s:.2f} s after the next life began")
        assert (after.handshake_unix_s, after.public_key) == (
            before.handshake_unix_s, before.public_key
        )  # fmt: skip
        assert daemons(before.interface) == daemon
        assert made.peers()[before.public_key] >= heard
        assert os.getsid(daemon[0]) != os.getsid(worker.pids()["vpn"])
        output = [Path(f"/proc/{daemon[0]}/fd/{number}").readlink() for number in (0, 1, 2)]
        assert {*output} == {Path("/dev/null")}


def test_what_it_may_not_do_is_said_and_it_goes_on() -> None:
    """As a container without NET_ADMIN is."""
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    with net() as made, supervised(
        ["vpn"], launcher=(*_inside(made), *without), EGRESS="off"
    ) as worker:
        worker.next(VpnState)
        link = Link(worker.home)
        link.assign(made.tunnel(), "")
        said = worker.next(VpnState, lambda state: state.phase is VpnPhase.DOWN)
        link.close()
        assert "is not permitted: run the worker as root, or give vpn CAP_NET_ADMIN" in said.detail
        later = worker.next(VpnState, lambda state: state.at_s > said.at_s + 2)
        assert later.phase is VpnPhase.DOWN


def _inside(made: Net) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{made.worker}")


# ------------------------------------------------------------------ a thief


def forms(private_key: str) -> tuple[bytes, ...]:
    raw = base64.b64decode(private_key)
    return (
        private_key.rstrip("=").encode(), raw, raw.hex().encode(), raw.hex().upper().encode(),
        base64.urlsafe_b64encode(raw).rstrip(b"="), repr(raw)[2:-1].encode(),
    )  # fmt: skip


class Thief:
    """Looks wherever another user, or a reader of logs, can look."""

    def __init__(self, worker: Supervised, record: Path, port: int, made: Net) -> None:
        self._worker, self._record, self._port, self._made = worker, record, port, made
        self.heard: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        tap = Tap(self._worker.home)
        while not self._end.is_set():
            if passed := tap.next(0.05):
                self.heard.append(repr(passed))
        tap.close()

    def loot(self) -> Iterator[tuple[str, bytes]]:
        yield "the commands", self._record.read_bytes()
        yield "messages", "\n".join(self.heard).encode()
        yield "pages", self._pages()
        for path in self._worker.home.rglob("*"):
            if path.is_file() and not path.name.startswith("wg0.conf"):
                yield str(path), path.read_bytes()
        for pid in [self._worker.pid, *self._pids()]:
            for name in ("cmdline", "environ", "comm"):
                yield f"{pid}'s {name}", _read(Path(f"/proc/{pid}/{name}"))
        journal = subprocess.run(("ps", "axeww"), capture_output=True, check=True).stdout
        yield "ps", journal

    def _pids(self) -> list[int]:
        found = subprocess.run(
            ("ip", "netns", "pids", self._made.worker), capture_output=True, check=True
        ).stdout
        return [int(word) for word in found.split()]

    def _pages(self) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        found = b""
        for path in ("/healthz", "/metrics", "/monitor.html", "/history"):
            connection.request("GET", path)
            found += connection.getresponse().read()
        connection.request("GET", "/events")
        answer = connection.getresponse()
        found += answer.readline() + answer.readline()
        connection.close()
        return found

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_private_key_is_nowhere_but_in_its_file(tmp_path: Path) -> None:
    record, port = tmp_path / "record", free_port()
    for name in WRAPPED:
        real = subprocess.run(("which", name), capture_output=True, text=True, check=True).stdout
        (tmp_path / name).write_text(WRAPPER.format(record=record, real=real.strip()))
        (tmp_path / name).chmod(0o755)
    settings = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG_LEVEL": "DEBUG",
        "WEB_LISTEN": f"127.0.0.1:{port}",
    }  # fmt: skip
    with life(["vpn", "web", "watchdog"], **settings) as (worker, made, link):
        thief = Thief(worker, record, port, made)
        try:
            keys = [*_used(worker, made, link), *_broken(worker)]
            loot = dict(inside(made.worker, lambda: [*thief.loot()]))
        finally:
            thief.close()
        assert b"syncconf" in loot["the commands"]
        assert b"wghm" in loot["messages"]
        assert b"wghm" in loot["pages"]
        for key in keys:
            for place, content in loot.items():
                assert not any(form in content for form in forms(key)), place
        for path in worker.home.glob("wg0.conf*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _used(worker: Supervised, made: Net, link: Link) -> Iterator[str]:
    """A tunnel, and its key changed; the keys."""
    old = joined(worker, made, link)
    yield _key(worker.home / "wg0.conf")
    until(lambda: _rotated(worker.home) or None, "web has heard of the tunnel, and takes the wish")
    new = worker.next(VpnState, lambda state: state.public_key != old.public_key)
    yield _key(worker.home / "wg0.conf.next")
    made.has_no_peer(old.public_key)
    made.has_peer(new.public_key)
    link.assign(made.tunnel(), new.public_key)
    worker.next(VpnState, lambda state: "waits" not in state.detail and state.phase is VpnPhase.UP)


def _rotated(home: Path) -> bool:
    try:
        ask_owner(home, "/vpn/rotate", {})
    except (NoAnswerError, RefusedError):
        return False
    return True


def _says(worker: Supervised, words: str) -> None:
    worker.next(VpnState, lambda state: words in state.detail)


def _key(path: Path) -> str:
    return parse(path.read_text()).interface.private_key


def _broken(worker: Supervised) -> Iterator[str]:
    """Files that are refused, with a key where it does not belong."""
    path = worker.home / "wg0.conf"
    for number, line in enumerate(MISPLACED):
        key = make_key()[0]
        path.write_text("\n" * number + GOOD + line.format(key=key))
        where = f"line {len(GOOD.splitlines()) + 1 + number}: "
        _says(worker, where)
        yield key
    yield from re.findall(r"PrivateKey = (\S+)", GOOD)
