"""The pool of task networks on a real engine of its own: some of it uses all of its addresses."""

import io
import itertools
import os
import select
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import docker
import pytest

from procs.executor.engine import DockerEngine, EngineAwayError, Network
from procs.executor.install_box import PipSettings
from procs.executor.installs import Installed, Installs, Order
from procs.executor.layers import Layers
from procs.executor.networks import AGAIN_S, NetworkError, Networks, NetworkWaitError
from procs.executor.quota import Grant
from procs.executor.sandbox import Image
from shared.egress import bridge, names
from shared.messages import VpnState
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

HOME = f"/tmp/hmn-{os.getpid()}"
PREFIX = names(Path(HOME)).task
ALL = VpnState(
    at_s=1.0, covered_bridges=tuple(bridge(PREFIX, n) for n in range(100)), resolvers=("10.0.0.53",)
)
FIRST, SECOND = bridge(PREFIX, 0), bridge(PREFIX, 1)
GRANT = Grant(cpus=0.5, memory_bytes=2**26, disk_bytes=2**26, processes=8)


def import_pause(own: PrivateEngine) -> None:
    """An image that only stays: made in a tenth of a second."""
    program = own.folder / "pause"
    source = b"int pause(void); int main(void) { return pause(); }"
    compile_it = ("musl-gcc", "-static", "-x", "c", "-", "-o", str(program))
    subprocess.run(compile_it, input=source, check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(program, "pause")
    with closing(docker.APIClient(base_url=own.host, version="1.41")) as api:
        api.import_image_from_data(packed.getvalue(), repository="pause")


@pytest.fixture(scope="module")
def own() -> Iterator[PrivateEngine]:
    private = PrivateEngine(Path(tempfile.mkdtemp(prefix="hmn-", dir="/tmp")).resolve())
    (Path(HOME) / "run").mkdir(parents=True, exist_ok=True)
    try:
        private.start()
        import_pause(private)
        yield private
    finally:
        private.stop("--purge")
        shutil.rmtree(HOME)


@pytest.fixture
def api(own: PrivateEngine) -> Iterator[docker.APIClient]:
    made = docker.APIClient(base_url=own.host, version="1.41")
    yield made
    for row in made.containers(all=True):
        made.remove_container(row["Id"], force=True)
    for row in made.networks(filters={"type": "custom"}):
        made.remove_network(row["Id"])
    made.close()


@pytest.fixture(scope="module")
def door(own: PrivateEngine) -> Iterator[DockerEngine]:
    made = DockerEngine(own.host)
    yield made
    made._api().close()


@pytest.fixture
def pool(door: DockerEngine, api: docker.APIClient) -> Networks:
    return made(door)


def made(door: DockerEngine, most: int = 8, vpn: VpnState | None = ALL) -> Networks:
    networks = Networks(door, HOME, PREFIX, most)
    networks.hear(vpn)
    return networks


def there(api: docker.APIClient) -> list[str]:
    return sorted(row["Name"] for row in api.networks(filters={"type": "custom"}))


def test_one_network_serves_one_owner_after_another(
    pool: Networks, api: docker.APIClient
) -> None:
    for owner in range(5):
        assert pool.take(owner).name == pool.take(owner).name == FIRST
        pool.release(owner)
    assert there(api) == [FIRST]


def test_two_at_once_have_two_and_a_later_life_knows_whose(
    door: DockerEngine, pool: Networks, api: docker.APIClient
) -> None:
    assert (pool.take("a").name, pool.take("b").name) == (FIRST, SECOND)
    later = made(door)
    later.hold("b", SECOND)
    assert later.take("c").name == FIRST
    assert later.take("b").name == SECOND
    assert there(api) == [FIRST, SECOND]


def test_eight_at_once_have_eight(pool: Networks, api: docker.APIClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda owner: pool.take(owner).name, range(8)))
    assert sorted(taken) == there(api)
    assert len(set(taken)) == 8
    with pytest.raises(NetworkWaitError, match=r"one of this node's 8 task networks"):
        pool.take("ninth")
    assert not pool.may_go("ninth", now_s=0.0)
    pool.release(3)
    assert pool.may_go("ninth", now_s=0.0)
    assert pool.take("ninth").name == taken[3]


def test_containers_on_it_would_not_meet_and_it_has_no_ipv6(
    pool: Networks, api: docker.APIClient
) -> None:
    found = api.inspect_network(pool.take("a").name)
    assert found["Driver"] == "bridge"
    assert found["EnableIPv6"] is False
    assert found["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    assert found["Options"]["com.docker.network.bridge.name"] == FIRST
    assert found["Labels"] == {"hivemind.network": "egress", "hivemind.home": HOME}


def test_it_is_given_out_only_under_the_firewalls_word(
    door: DockerEngine, api: docker.APIClient
) -> None:
    pool = made(door, vpn=None)
    pool.ensure()
    assert there(api) == [FIRST]
    assert not pool.has_covered
    with pytest.raises(NetworkWaitError, match=f"waiting for the firewall of its network {FIRST}"):
        pool.take("a")
    assert not pool.may_go("a", now_s=1e9)
    pool.hear(VpnState(at_s=1.0, covered_bridges=("hm-eg99999900", SECOND)))
    assert not pool.may_go("a", now_s=1e9)
    pool.hear(ALL)
    assert pool.may_go("a", now_s=0.0)
    assert pool.take("a").resolvers == ("10.0.0.53",)
    pool.hear(None)
    with pytest.raises(NetworkWaitError):
        pool.take("a")


def test_what_somebody_removed_is_made_again(pool: Networks, api: docker.APIClient) -> None:
    pool.take("a")
    api.remove_network(FIRST)
    assert pool.take("a").name == FIRST
    pool.release("a")
    api.remove_network(FIRST)
    assert pool.take("b").name == FIRST
    api.remove_network(FIRST)
    pool.ensure()
    assert there(api) == [], "it has an owner, who will make it"
    pool.release("b")
    pool.ensure()
    assert there(api) == [FIRST]


def test_one_with_a_stranger_on_it_is_not_used_until_he_has_left(
    pool: Networks, api: docker.APIClient
) -> None:
    pool.ensure()
    stranger = api.create_container(
        "pause", "/pause", host_config=api.create_host_config(network_mode=FIRST)
    )
    api.start(stranger)
    assert pool.take("a").name == SECOND
    api.remove_container(stranger, force=True)
    assert pool.take("b").name == FIRST


def test_two_homes_never_meet(door: DockerEngine, pool: Networks, api: docker.APIClient) -> None:
    other = names(Path(f"{HOME}/two")).task
    (Path(HOME) / "two" / "run").mkdir(parents=True)
    theirs = Networks(door, f"{HOME}/two", other, 8)
    theirs.hear(VpnState(at_s=1.0, covered_bridges=(bridge(other, 0),)))
    assert pool.take("a").name == FIRST
    assert theirs.take("a").name == bridge(other, 0)
    assert len(there(api)) == 2


def test_docker_without_an_address_left(pool: Networks, api: docker.APIClient) -> None:
    pool.ensure()
    while True:
        try:
            api.create_network(f"full-{len(there(api))}")
        except docker.errors.APIError:
            break
    assert pool.take("a").name == FIRST
    with pytest.raises(NetworkWaitError, match=r"one of this node's 1 task networks.*address"):
        pool.take("b")
    assert not pool.may_go("b", now_s=0.0)
    pool.release("a")
    assert pool.take("b").name == FIRST
    pool.release("b")
    api.remove_network(FIRST)
    api.create_network("full")
    with pytest.raises(NetworkError, match=r"no network could be made for it:.*address.*prune"):
        pool.take("c")
    api.remove_network("full")
    assert pool.take("c").name == FIRST


class Away(DockerEngine):
    """Goes away in the middle of making or looking at a network, then is there."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.is_away = True

    def network(self, name: str) -> Network:
        self._may_answer()
        return super().network(name)

    def make_network(self, name: str, labels: dict[str, str], options: dict[str, str]) -> None:
        self._may_answer()
        super().make_network(name, labels, options)

    def _may_answer(self) -> None:
        if self.is_away:
            raise EngineAwayError("gone")


def test_an_engine_that_goes_away_leaves_nothing_reserved(
    own: PrivateEngine, api: docker.APIClient
) -> None:
    engine = Away(own.host)
    pool = Networks(engine, HOME, PREFIX, 1)
    pool.hear(ALL)
    with pytest.raises(EngineAwayError):
        pool.take("a")
    engine.is_away = False
    pool.ensure()
    engine.is_away = True
    with pytest.raises(EngineAwayError):
        pool.take("b")
    engine.is_away = False
    assert pool.take("c").name == FIRST
    engine._api().close()


class Deaf(DockerEngine):
    """Makes a network, and its first answer is lost."""

    is_away = True

    def make_network(self, name: str, labels: dict[str, str], options: dict[str, str]) -> None:
        super().make_network(name, labels, options)
        if self.is_away:
            self.is_away = False
            raise EngineAwayError("gone")


def test_one_whose_making_was_not_answered_is_used(
    own: PrivateEngine, api: docker.APIClient
) -> None:
    engine = Deaf(own.host)
    pool = Networks(engine, HOME, PREFIX, 8)
    pool.hear(ALL)
    with pytest.raises(EngineAwayError):
        pool.take("a")
    assert pool.take("a").name == FIRST
    assert there(api) == [FIRST]
    engine._api().close()


class Second(DockerEngine):
    """The first to ask it for a network is served when the second has asked for one, before him."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.asked = [threading.Event(), threading.Event()]
        self.served = threading.Event()
        self._calls = itertools.count()

    def make_network(self, name: str, labels: dict[str, str], options: dict[str, str]) -> None:
        call = next(self._calls)
        self.asked[call].set()
        (self.served if call else self.asked[1]).wait()
        try:
            super().make_network(name, labels, options)
        finally:
            self.served.set()


def test_two_who_make_the_same_both_have_made_it(own: PrivateEngine, api: docker.APIClient) -> None:
    engine = Second(own.host)
    pool = Networks(engine, HOME, PREFIX, 8)
    pool.hear(ALL)
    with ThreadPoolExecutor(1) as thread:
        ensured = thread.submit(pool.ensure)
        engine.asked[0].wait()
        assert pool.take("a").name == FIRST
        ensured.result()
    assert there(api) == [FIRST]
    engine._api().close()


@pytest.mark.parametrize("name", [pytest.param(FIRST, id="shown"), "hidden"])
def test_a_name_or_bridge_that_somebody_has_is_passed_over(
    pool: Networks, api: docker.APIClient, name: str
) -> None:
    """As Docker itself has it, hidden, after a crash in the middle of making one."""
    api.create_network(name, options={"com.docker.network.bridge.name": FIRST})
    assert pool.take("a").name == SECOND
    pool.release("a")
    assert pool.take("b").name == SECOND


class Stuck(DockerEngine):
    """Goes away once, when a container is to be removed."""

    is_away = True

    def remove(self, container: str) -> None:
        if self.is_away:
            self.is_away = False
            raise EngineAwayError("gone")
        super().remove(container)


def test_an_installation_gives_back_its_network_once_its_container_is_gone(
    own: PrivateEngine, api: docker.APIClient, tmp_path: Path
) -> None:
    engine = Stuck(own.host)
    pool = Networks(engine, HOME, PREFIX, 1)
    pool.hear(ALL)
    keeper = tmp_path / "keeper"
    keeper.touch()
    layers = Layers(tmp_path)
    installs = Installs(engine, layers, pool, Path(HOME), keeper, "runc", PipSettings())
    with closing(installs):
        for number in range(2):
            order = Order(f"layer{number}", ("a",), Image("sha256:" + 64 * "0"), "x", GRANT)
            assert ended(installs, order) == Installed(order.layer)  # the image is asked for again
    assert pool.take("another").name == FIRST
    engine._api().close()


def ended(installs: Installs, order: Order) -> Installed:
    """What became of it."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        installs.want({order.layer: order}, time.monotonic(), engine_is_there=True)
        select.select([installs.fileno()], [], [], 0.1)
        for installed in installs.results(time.monotonic()):
            return installed
    raise AssertionError(installs.progress(order.layer))


def test_it_is_tried_again_after_a_while(door: DockerEngine, api: docker.APIClient) -> None:
    pool = made(door, most=1)
    pool.take("a")
    with pytest.raises(NetworkWaitError):
        pool.take("b")
    assert not pool.may_go("b", now_s=0.0)
    assert pool.may_go("b", now_s=1e9 + AGAIN_S)
