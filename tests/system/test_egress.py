"""Tasks with network, on a real engine behind a real router: what they reach and what not.

The vpn process runs where the engine's bridges are, in its network namespace; the internet, the
LAN, a VPN's peer and a cloud's metadata are addresses of the router's.
"""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from shared.bus import Tap
from shared.egress import names
from shared.messages import TaskPhase, VpnState
from shared.taskdir import TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine
from tests.system.whole import Worker, docker_api, until, whole
from tests.vpn.wires import (
    DIRECT_HOST,
    DIRECT_NEIGHBOUR,
    INTERNET,
    INTERNET6,
    LAN_HOST,
    LAN_NEIGHBOUR,
    METADATA,
    OPEN_S,
    RESOLVER,
    VPN_PEER,
    Probe,
    Wires,
    answered,
    listening,
    wires,
)  # fmt: skip

pytestmark = pytest.mark.docker

NAME = "internet.example"
ASKS = """
import json, os, socket, threading
found = {}
def ask(name, host, port, family):
    try:
        with socket.socket(family) as one:
            one.settimeout(WAIT)
            one.connect((host, port))
            found[name] = one.recv(1) == b"!"
    except OSError as err:
        found[name] = False
threads = [
    threading.Thread(target=ask, args=(f"{host}:{port}", host, port, 10 if ":" in host else 2))
    for host, port in json.loads(os.environ["ASK"])
]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(found))
"""
LISTENS = """
import socket
made = socket.socket()
made.bind(("", 80))
made.listen()
print("up", flush=True)
while True:
    with made.accept()[0] as one:
        one.sendall(b"!")
"""


@pytest.fixture(scope="module")
def world(engine: PrivateEngine) -> Iterator[tuple[ExecutorAlone, Wires]]:
    assert engine.task_image
    namespace = (engine.folder / "namespace").read_text().strip()
    executor = ExecutorAlone(engine.host, namespace, EGRESS_DNS=RESOLVER)
    with ExitStack() as stack:
        made = stack.enter_context(wires(names(executor.home), namespace))
        stack.enter_context(listening(made, "host", (22, 80), (67,)))
        stack.enter_context(listening(made, "router", (80,), ()))
        stack.enter_context(resolving(made))
        stack.callback(executor.stop)
        executor.start()
        executor.wait(lambda: (vpn := executor.vpn()) and vpn.covered_bridges, "a covered bridge")
        yield executor, made


@contextmanager
def resolving(made: Wires) -> Iterator[None]:
    """A resolver that knows one address for every name."""

    def bound() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((RESOLVER, 53))
        return one

    server = made.inside("router", bound)
    thread = threading.Thread(target=resolve, args=(server,))
    thread.start()
    try:
        yield
    finally:
        made.inside("router", farewell)
        thread.join()
        server.close()


def farewell() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", (RESOLVER, 53))


def resolve(server: socket.socket) -> None:
    while query := (asked := server.recvfrom(512))[0]:
        end = query.index(b"\0", 12) + 5
        is_a = query[end - 4 : end - 2] == b"\0\x01"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(INTERNET) if is_a else b""
        server.sendto(head + query[12:end] + answer, asked[1])


def egress(code: str, name: str, **more: Any) -> Any:
    return task("python3", "-c", code, name=name, egress=True, **more)


def address_of(executor: ExecutorAlone, key: TaskKey) -> tuple[str, str, str]:
    """(its network, its address, the gateway's) of a task that runs."""
    (name, network), *_ = executor.inspect(key)["NetworkSettings"]["Networks"].items()
    return name, network["IPAddress"], network["Gateway"]


def asked(
    executor: ExecutorAlone, name: str, *targets: tuple[str, int], wait_s: float
) -> dict[str, bool]:
    code = ASKS.replace("WAIT", str(wait_s))
    key = executor.assign(egress(code, name, environment={"ASK": json.dumps(targets)}))
    report = executor.wait_report(key)
    assert report.phase is TaskPhase.SUCCEEDED, (report, executor.output(key, 2))
    found: dict[str, bool] = json.loads(executor.output(key))
    executor.wait_released(key)
    return found


def test_a_task_reaches_the_internet_by_address_and_by_name(
    world: tuple[ExecutorAlone, Wires],
) -> None:
    executor, _ = world
    found = asked(executor, "out", (INTERNET, 80), (NAME, 80), wait_s=OPEN_S)
    assert found == {f"{INTERNET}:80": True, f"{NAME}:80": True}


def test_it_asks_the_resolvers_themselves(world: tuple[ExecutorAlone, Wires]) -> None:
    """Not Docker's own, which is dead whenever the engine is."""
    executor, _ = world
    key = executor.assign(task("cat", "/etc/resolv.conf", name="resolv", egress=True))
    executor.wait_report(key)
    assert executor.output(key).decode() == f"nameserver {RESOLVER}\n"
    executor.wait_released(key)


def test_it_reaches_nothing_else_and_nobody_reaches_it(world: tuple[ExecutorAlone, Wires]) -> None:
    executor, made = world
    other = executor.assign(egress(LISTENS, "other"))
    executor.wait(lambda: b"up" in executor.output(other), "the other task is up")
    network, neighbour, gateway = address_of(executor, other)
    link_local = made.run("host", "ip", "-6", "-o", "addr", "show", "dev", network, "scope", "link")
    assert "fe80:" in link_local
    closed = [
        (host, port)
        for host in (
            gateway, LAN_HOST, DIRECT_HOST, LAN_NEIGHBOUR, DIRECT_NEIGHBOUR, METADATA, RESOLVER,
            VPN_PEER, "192.0.2.9", neighbour, "fd77::1", "fd77::2", INTERNET6,
            link_local.split("inet6 ")[1].split("/")[0],
        )
        for port in (22, 80)
    ]  # fmt: skip
    found = asked(executor, "hostile", *closed, (INTERNET, 80), wait_s=2.0)
    assert [name for name, open_ in found.items() if open_] == [f"{INTERNET}:80"]
    made.run("router", "ip", "route", "add", f"{neighbour}/32", "via", LAN_HOST)
    inward = [Probe("router", "tcp", neighbour, 80, source) for source in (LAN_NEIGHBOUR, INTERNET)]
    assert answered(made, inward, 1.0) == set()
    executor.cancel(other)
    executor.wait_report(other)
    executor.wait_released(other)


def test_tasks_one_after_another_leave_the_pool_at_its_size(
    world: tuple[ExecutorAlone, Wires],
) -> None:
    executor, _ = world
    before = executor.networks()
    for number in range(5):
        key = executor.assign(task("true", name=f"one-{number}", egress=True))
        assert executor.wait_report(key).phase is TaskPhase.SUCCEEDED
        executor.wait_released(key)
    assert executor.networks() == before
    assert executor.containers() == []


def test_a_later_life_knows_whose_a_network_is(world: tuple[ExecutorAlone, Wires]) -> None:
    executor, _ = world
    key = executor.assign(egress(LISTENS, "long"))
    executor.wait(lambda: b"up" in executor.output(key), "it is up")
    mine = address_of(executor, key)[0]
    killed = executor.kill()
    executor.wait(lambda: executor.pid() != killed, "another executor")
    other = executor.assign(egress(LISTENS, "later"))
    executor.wait(lambda: b"up" in executor.output(other), "the later one is up")
    assert address_of(executor, other)[0] != mine
    for one in (key, other):
        executor.cancel(one)
        assert executor.wait_report(one).phase is TaskPhase.CANCELLED
        executor.wait_released(one)


def test_without_the_firewalls_word_it_waits(world: tuple[ExecutorAlone, Wires]) -> None:
    executor, _ = world
    vpn = executor.pid("vpn")
    os.kill(vpn, signal.SIGSTOP)
    try:
        executor.wait(lambda: executor.vpn() is None, "its last word is stale")
        key = executor.assign(task("true", name="waits", egress=True))
        executor.wait(
            lambda: (held := executor.held(key)) and "waiting for the firewall" in held.detail,
            "it says what it waits for",
        )
        assert executor.containers() == []
    finally:
        os.kill(vpn, signal.SIGCONT)
    assert executor.wait_report(key).phase is TaskPhase.SUCCEEDED
    executor.wait_released(key)


def test_a_whole_worker_beside_another_gives_its_task_the_same(
    world: tuple[ExecutorAlone, Wires], engine: PrivateEngine
) -> None:
    """From the master's submission to what it has of the task, on a network of its own."""
    other = world[0].networks()
    asks = {"ASK": json.dumps([(NAME, 80), (METADATA, 80), (LAN_HOST, 80), (VPN_PEER, 80)])}
    with whole(
        engine.host, engine.task_image, world[1].spaces["host"], EGRESS="on", EGRESS_DNS=RESOLVER
    ) as (worker, master):
        try:
            until(lambda: covered(worker), "a covered bridge")
            task_id = master.submit(
                "python3", "-c", ASKS.replace("WAIT", "2.0"),
                network="egress", environment=asks, cpus=0.5, memory_bytes=64 * 2**20,
            )  # fmt: skip
            assert master.ended(task_id)["state"] == "succeeded"
            assert json.loads(master.log(task_id)["stdout"]) == {
                f"{NAME}:80": True, f"{METADATA}:80": False, f"{LAN_HOST}:80": False,
                f"{VPN_PEER}:80": False,
            }  # fmt: skip
            mine = networks_of(worker, engine)
            assert len(mine) == 1
            assert not {*mine} & {*other}
        finally:
            worker.stop()
            with docker_api(engine.host) as api:
                for network in networks_of(worker, engine):
                    api.remove_network(network)
            table = names(worker.home).table
            world[1].run("host", "nft", "delete", "table", "inet", table)


def covered(worker: Worker) -> tuple[str, ...]:
    with closing(Tap(worker.home, ["vpn.state"])) as tap:
        heard = tap.next(5.0)
    state = heard[1] if heard is not None else None
    return state.covered_bridges if isinstance(state, VpnState) else ()


def networks_of(worker: Worker, engine: PrivateEngine) -> list[str]:
    with docker_api(engine.host) as api:
        label = {"label": f"hivemind.home={worker.home}"}
        return [row["Name"] for row in api.networks(filters=label)]
