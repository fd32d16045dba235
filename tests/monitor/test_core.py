"""What the rules look at, what the kernel's counters mean, what of the network counts."""

import math
from pathlib import Path

import pytest

from procs.monitor.core import (
    CpuUse,
    NetworkTotal,
    counted,
    parse_cpus,
    parse_pressure,
    readings,
    rules,
)
from shared.messages import HostLoad
from shared.settings import load


def test_each_rule_has_a_reading_and_a_gap_between_its_limits(tmp_path: Path) -> None:
    whole = HostLoad(
        at_s=0.0, disk_total_bytes=200, disk_free_bytes=50, cpu_pct=1.0, memory_pct=2.0,
        swap_pct=3.0, temperature_c=4.0, pressure_cpu_pct=5.0, pressure_memory_pct=6.0,
        pressure_io_pct=7.0,
    )  # fmt: skip
    assert readings(whole) == {
        "cpu": 1.0, "memory": 2.0, "swap": 3.0, "disk": 75.0, "temperature": 4.0,
        "cpu_pressure": 5.0, "memory_pressure": 6.0, "io_pressure": 7.0,
    }  # fmt: skip
    known = rules(load({"HIVEMIND_HOME": str(tmp_path)}, tmp_path))
    assert [rule.name for rule in known] == list(readings(whole))
    assert [rule.name for rule in known if rule.raise_at == math.inf] == ["cpu_pressure"]
    assert all(rule.clear_at < rule.raise_at for rule in known if rule.raise_at < math.inf)


def test_a_threshold_is_the_owners(tmp_path: Path) -> None:
    own = {"HIVEMIND_HOME": str(tmp_path), "ALERT_SWAP": "off", "ALERT_DISK": "70,60,5"}
    known = {rule.name: rule for rule in rules(load(own, tmp_path))}
    disk = known["disk"]
    assert (disk.raise_at, disk.clear_at, disk.for_s) == (70.0, 60.0, 5.0)
    assert known["swap"].raise_at == math.inf


def test_what_is_not_known_has_no_reading() -> None:
    assert set(readings(HostLoad(at_s=0.0))) == {"cpu", "memory", "swap"}


STAT = """\
cpu  400 0 200 1400 100 0 0 0 50 0
cpu0 100 0 100 700 100 0 0 0 50 0
cpu1 300 0 100 700 0 0 0 0 0 0
intr 1 2 3
"""


def test_the_kernels_counters_are_of_each_core() -> None:
    assert parse_cpus(STAT) == {0: (200, 1000), 1: (400, 1100)}


@pytest.mark.parametrize(
    ("ticks", "all_pct", "cores_pct"),
    [
        pytest.param({0: (250, 1100), 1: (400, 1200)}, 25.0, (50, 0), id="one half busy"),
        pytest.param({0: (300, 1100), 1: (500, 1200)}, 100.0, (100, 100), id="all"),
        pytest.param({1: (425, 1200)}, 25.0, (25,), id="one switched off"),
        pytest.param({0: (200, 1000), 1: (400, 1100)}, 0.0, (0, 0), id="no time passed"),
        pytest.param({0: (190, 1100), 1: (450, 1200)}, 20.0, (0, 50), id="counters fell"),
        pytest.param(
            {0: (200, 1100), 1: (400, 1200), 2: (90, 90)}, 0.0, (0, 0), id="one switched on"
        ),
    ],
)
def test_cpu_use_is_that_since_the_last_reading(
    ticks: dict[int, tuple[int, int]], all_pct: float, cores_pct: tuple[int, ...]
) -> None:
    use = CpuUse(parse_cpus(STAT))
    use.add(ticks)
    assert (use.all_pct, use.cores_pct) == (all_pct, cores_pct)


@pytest.mark.parametrize(
    ("read", "pct"),
    [
        pytest.param([(5.0, 1.0)], 0.0, id="the first says nothing yet"),
        pytest.param([(5.0, 1.0), (6.0, 2.0)], 50.0, id="one of two cores"),
        pytest.param([(5.0, 1.0), (9.0, 2.0)], 100.0, id="no more than all"),
        pytest.param([(5.0, 1.0), (0.5, 2.0)], 0.0, id="the group was made anew"),
        pytest.param([(5.0, 1.0), (None, 2.0)], None, id="can't be read"),
        pytest.param([(5.0, 1.0), (None, 2.0), (9.0, 3.0)], 0.0, id="can be again"),
    ],
)
def test_the_tasks_part_is_of_all_cores(
    read: list[tuple[float | None, float]], pct: float | None
) -> None:
    use = CpuUse(parse_cpus(STAT))
    seen = [use.part_pct(used_s, now_s) for used_s, now_s in read]
    assert seen[-1] == pct


@pytest.mark.parametrize(
    ("readings_of_cards", "total"),
    [
        pytest.param([{"eth0": (10, 5)}], (10, 5), id="first"),
        pytest.param([{"eth0": (10, 5)}, {"eth0": (17, 6)}], (17, 6), id="grows"),
        pytest.param(
            [{"eth0": (10, 5), "eth1": (4, 4)}, {"eth0": (10, 5)}], (14, 9), id="a card goes"
        ),
        pytest.param([{"eth0": (10, 5)}, {"eth0": (3, 1)}], (13, 6), id="began again from zero"),
    ],
)
def test_network_totals_only_grow(
    readings_of_cards: list[dict[str, tuple[int, int]]], total: tuple[int, int]
) -> None:
    network = NetworkTotal()
    for cards in readings_of_cards:
        network.add(cards)
    assert (network.received_bytes, network.sent_bytes) == total


@pytest.mark.parametrize(
    ("real", "found"),
    [
        pytest.param({"eth0", "wlan0"}, ["eth0", "wlan0"], id="the hardware's"),
        pytest.param(set(), ["eth0", "wlan0", "br0", "bond0"], id="in a container: by name"),
    ],
)
def test_a_byte_is_counted_once(real: set[str], found: list[str]) -> None:
    inside = ("lo", "veth1", "docker0", "br-3f", "virbr0", "hm-eg1", "wg0", "tun0")
    names = ("eth0", "wlan0", "br0", "bond0", *inside)
    assert counted(names, real) == found


@pytest.mark.parametrize(
    ("text", "pct"),
    [
        pytest.param(
            "some avg10=1.50 avg60=0.1 avg300=0 total=5\nfull avg10=9 total=1\n", 1.5, id="some"
        ),
        pytest.param("full avg10=9.00 avg60=0.1 total=5\n", None, id="no such line"),
        pytest.param("", None, id="empty"),
    ],
)
def test_pressure_is_the_share_of_ten_seconds(text: str, pct: float | None) -> None:
    assert parse_pressure(text) == pct
