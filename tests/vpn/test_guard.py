"""The vpn process in a network namespace: its rules are in force, and stay so."""

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procs.vpn.firewall import endpoints
from procs.vpn.nft import NftError, listing
from shared.egress import bridge, names, number
from shared.messages import VpnPhase, VpnState
from tests.fakes.supervised import Supervised, supervised, until

BELL_S = 10.0  # a loaded machine; without the bell it would be up to half a minute
CAP_NET_ADMIN = 1 << 12
INDEX, PROXY = "http://me:secret@192.168.9.9:8081/simple", "http://localhost:1"
NUMBERS = itertools.count()


@dataclass
class There:
    """A worker of the vpn process alone, and the namespace that it runs in."""

    worker: Supervised
    namespace: str

    @property
    def table(self) -> str:
        return names(self.worker.home).table

    def run(self, *command: str) -> str:
        enter = ("nsenter", f"--net=/run/netns/{self.namespace}")
        return subprocess.run((*enter, *command), check=True, capture_output=True, text=True).stdout

    def rules(self) -> str | None:
        """None: there are none."""
        if self.table not in self.run("nft", "list", "tables"):
            return None
        return self.run("nft", "-st", "list", "table", "inet", self.table)

    def covers(self, *bridges: str) -> VpnState:
        return self.worker.next(VpnState, lambda state: state.covered_bridges == bridges)

    def has_bridge(self, name: str) -> None:
        self.run("ip", "link", "add", name, "type", "bridge")

    def has_no_bridge(self, name: str) -> None:
        self.run("ip", "link", "del", name)


@contextmanager
def there(**settings: Any) -> Iterator[There]:
    namespace = f"hmg{os.getpid()}-{next(NUMBERS)}"
    subprocess.run(("ip", "netns", "add", namespace), check=True)
    try:
        launcher = ("nsenter", f"--net=/run/netns/{namespace}")
        with supervised(["vpn"], launcher=launcher, EGRESS_DNS="10.0.0.53", **settings) as worker:
            yield There(worker, namespace)
    finally:
        subprocess.run(("ip", "netns", "del", namespace), check=True)


@pytest.fixture(scope="module")
def vpn() -> Iterator[There]:
    with there(VPN="required", PIP_INDEX_URL=INDEX, PIP_PROXY=PROXY) as made:
        made.has_bridge(bridge(names(made.worker.home).task, 0))
        yield made


def mine(vpn: There) -> str:
    return bridge(names(vpn.worker.home).task, 0)


def test_it_vouches_for_the_bridges_of_its_own_worker_in_its_own_namespace(vpn: There) -> None:
    own = names(vpn.worker.home)
    install, strangers = bridge(own.install, 3), "hm-eg00000000"
    vpn.has_bridge(install)
    vpn.has_bridge(strangers)
    subprocess.run(("ip", "link", "add", bridge(own.task, 1), "type", "bridge"), check=True)
    try:
        state = vpn.covers(mine(vpn), install)
    finally:
        subprocess.run(("ip", "link", "del", bridge(own.task, 1)), check=True)
    assert state.resolvers == ("10.0.0.53",)
    assert state.phase is VpnPhase.WAITING, "the tunnel is another matter"
    vpn.has_no_bridge(install)
    vpn.has_no_bridge(strangers)
    vpn.covers(mine(vpn))


def test_it_has_no_other_capability(vpn: There) -> None:
    status = Path(f"/proc/{vpn.worker.pids()['vpn']}/status").read_text()
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        found = re.search(rf"{kind}:\s+([0-9a-f]+)", status)
        assert found is not None
        assert int(found[1], 16) == CAP_NET_ADMIN


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param("flush ruleset", id="all rules flushed"),
        pytest.param("delete table inet {table}", id="its table deleted"),
        pytest.param("flush chain inet {table} outward", id="a chain emptied"),
        pytest.param("insert rule inet {table} outward accept", id="a rule put before"),
        pytest.param("add set inet {table} mine {{ type ipv4_addr; }}", id="a set added"),
        pytest.param("add chain inet {table} mine", id="a chain added"),
    ],
)
def test_what_somebody_changes_is_restored(vpn: There, harm: str) -> None:
    vpn.covers(mine(vpn))
    before = vpn.rules()
    assert before is not None
    vpn.run("nft", harm.format(table=vpn.table))
    until(lambda: vpn.rules() == before or None, "the rules are restored", BELL_S)
    vpn.covers(mine(vpn))


def test_other_tables_are_nobodys_business(vpn: There) -> None:
    vpn.run("nft", "add table ip somebody")
    before = vpn.rules()
    vpn.run("nft", "delete table ip somebody")
    assert vpn.rules() == before


def whole_rules(vpn: There) -> str:
    """With the package index and the proxy, whose names are resolved after the start."""

    def text() -> str | None:
        found = vpn.rules() or ""
        return found if "tcp dport 1 accept" in found else None

    return until(text, "the proxy's name is resolved")


def test_the_rules_outlive_the_process(vpn: There) -> None:
    vpn.covers(mine(vpn))
    before, pid = whole_rules(vpn), vpn.worker.pids()["vpn"]
    os.kill(pid, signal.SIGKILL)
    assert vpn.rules() == before
    vpn.worker.back("vpn", pid)
    vpn.covers(mine(vpn))
    assert whole_rules(vpn) == before


def test_a_new_lan_is_closed(vpn: There) -> None:
    vpn.has_bridge("lan0")
    vpn.run("ip", "addr", "add", "203.0.113.2/24", "dev", "lan0")
    vpn.run("ip", "link", "set", "lan0", "up")
    until(lambda: "203.0.113.0/24" in (vpn.rules() or "") or None, "it is closed")
    vpn.has_no_bridge("lan0")
    until(lambda: "203.0.113.0/24" not in (vpn.rules() or "") or None, "it is gone")


def test_the_package_index_is_reached_from_installs_only(vpn: There) -> None:
    rules = whole_rules(vpn)
    assert "ip daddr 192.168.9.9 tcp dport 8081 accept" in rules
    assert "ip daddr 127.0.0.1 tcp dport 1 accept" in rules
    assert "secret" not in rules + vpn.worker.logs()


def test_where_there_is_nothing_to_guard_nothing_is_left() -> None:
    with there() as vpn:
        vpn.covers()
        assert vpn.rules() is not None
        vpn.worker.stop()
        assert vpn.rules() is None


def test_what_tasks_may_run_on_is_guarded_after_the_end() -> None:
    with there() as vpn:
        vpn.has_bridge(mine(vpn))
        vpn.covers(mine(vpn))
        vpn.worker.stop()
        assert vpn.rules() is not None


def test_without_egress_only_what_is_there_is_guarded() -> None:
    with there(EGRESS="off") as vpn:
        vpn.covers()
        assert vpn.rules() is None
        vpn.has_bridge(mine(vpn))
        vpn.covers(mine(vpn))
        assert vpn.rules() is not None


WITHOUT_NFT = 'mount --bind /dev/null "$(readlink -f "$(command -v nft)")" && exec "$@"'


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        pytest.param("on", "the command nft is missing: install the package nftables", id="on"),
        pytest.param("off", "", id="off: nobody needs it"),
    ],
)
def test_without_nft_nothing_is_vouched_for(egress: str, said: str) -> None:
    launcher = ("unshare", "--mount", "--net", "sh", "-c", WITHOUT_NFT, "sh")
    with supervised(["vpn"], launcher=launcher, VPN="off", EGRESS=egress) as worker:
        state = worker.next(VpnState)
        assert said in state.detail
        assert ("firewall" in state.detail) is (egress == "on")
        assert state.covered_bridges == ()


def test_what_nft_refuses_is_said_with_what_to_do() -> None:
    with pytest.raises(NftError, match=r"nft refuses: .*syntax error"):
        listing("no table; ;")
    assert listing("hivemind-nobody") is None


@pytest.mark.parametrize(
    ("indexes", "proxy", "found"),
    [
        pytest.param("", "", (), id="none"),
        pytest.param("https://a/simple", "", (("a", 443),), id="https"),
        pytest.param("http://u:p@a:81/x https://b", "", (("a", 81), ("b", 443)), id="two"),
        pytest.param("", "u:p@c:3128", (("c", 3128),), id="a proxy as pip has it"),
        pytest.param("", "http://c", (("c", 80),), id="a proxy's default port"),
        pytest.param("FILE:///x a-path http://[x http://a:b", "", (), id="what has no address"),
    ],
)
def test_what_pip_will_connect_to(
    indexes: str, proxy: str, found: tuple[tuple[str, int], ...]
) -> None:
    assert endpoints(indexes, proxy) == found


def test_a_bridges_name_fits_and_says_whose_it_is() -> None:
    own = names(Path("/a/home"))
    assert own != names(Path("/another"))
    for prefix in (own.task, own.install):
        assert len(bridge(prefix, 99)) <= 15
        assert number(prefix, bridge(prefix, 7)) == 7
        assert number(prefix, f"{prefix}7") is None
        assert number(prefix, f"{prefix}0x") is None
    assert number(own.task, bridge(own.install, 7)) is None
