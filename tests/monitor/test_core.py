"""Thresholds with hysteresis, and what of the network counts."""

import pytest

from procs.monitor.core import RULES, NetworkTotal, Rule, Watches, alerts, next_watches, readings
from procs.monitor.host import parse_pressure
from shared.messages import HostLoad

CALM = {"cpu": 5.0, "memory": 40.0, "swap": 0.0, "disk": 50.0}


def after(*steps: tuple[float, dict[str, float]]) -> Watches:
    watches: Watches = {}
    for now_s, values in steps:
        watches = next_watches(watches, CALM | values, "attic", now_s, 1000.0 + now_s)
    return watches


@pytest.mark.parametrize(
    ("steps", "raised"),
    [
        pytest.param([(0.0, {})], [], id="calm"),
        pytest.param([(0.0, {"disk": 95.0})], ["disk"], id="disk at the limit, at once"),
        pytest.param([(0.0, {"disk": 94.9})], [], id="disk just under"),
        pytest.param(
            [(0.0, {"disk": 95.0}), (1.0, {"disk": 92.0})], ["disk"], id="between: still raised"
        ),
        pytest.param([(0.0, {"disk": 95.0}), (1.0, {"disk": 91.9})], [], id="cleared"),
        pytest.param(
            [(0.0, {"disk": 95.0}), (1.0, {"disk": 91.9}), (2.0, {"disk": 94.0})],
            [],
            id="between, after it was cleared: not raised",
        ),
        pytest.param([(0.0, {"cpu": 100.0}), (59.9, {"cpu": 100.0})], [], id="cpu not yet long"),
        pytest.param([(0.0, {"cpu": 100.0}), (60.0, {"cpu": 95.0})], ["cpu"], id="cpu for long"),
        pytest.param(
            [(0.0, {"cpu": 100.0}), (30.0, {"cpu": 94.0}), (60.0, {"cpu": 100.0})],
            [],
            id="cpu fell meanwhile: counted anew",
        ),
        pytest.param(
            [(0.0, {"memory": 90.0}), (10.0, {"memory": 90.0, "disk": 99.0})],
            ["memory", "disk"],
            id="two at once",
        ),
        pytest.param([(0.0, {"swap": 80.0}), (60.0, {"swap": 80.0})], ["swap"], id="swap"),
    ],
)
def test_alerts_have_hysteresis(
    steps: list[tuple[float, dict[str, float]]], raised: list[str]
) -> None:
    assert [alert.rule for alert in alerts(after(*steps))] == raised


def test_an_alert_keeps_the_time_it_was_raised_and_tells_the_newest_value() -> None:
    (alert,) = alerts(after((0.0, {"disk": 96.0}), (5.0, {"disk": 93.0})))
    assert (alert.subject, alert.value, alert.threshold) == ("attic", 93.0, 95.0)
    assert alert.raised_unix_s == 1000.0


def test_a_reading_that_is_missing_passes_nothing_and_clears() -> None:
    rules = (Rule("heat", 90.0, 85.0, 0.0),)
    hot = next_watches({}, {"heat": 91.0}, "GPU-1", 0.0, 1000.0, rules)
    assert [alert.subject for alert in alerts(hot)] == ["GPU-1"]
    assert alerts(next_watches(hot, {}, "GPU-1", 1.0, 1001.0, rules)) == ()


def test_each_rule_has_a_reading_and_a_gap_between_its_limits() -> None:
    values = readings(HostLoad(at_s=0.0, disk_total_bytes=200, disk_free_bytes=50))
    assert set(values) == {rule.name for rule in RULES}
    assert values["disk"] == 75.0
    assert all(rule.clear_pct < rule.raise_pct for rule in RULES)


def test_a_machine_without_a_known_disk_raises_nothing() -> None:
    assert readings(HostLoad(at_s=0.0))["disk"] == 0.0


@pytest.mark.parametrize(
    ("readings_of_cards", "total"),
    [
        pytest.param([{"eth0": (10, 5)}], (10, 5), id="first"),
        pytest.param([{"eth0": (10, 5)}, {"eth0": (17, 6)}], (17, 6), id="grows"),
        pytest.param(
            [{"eth0": (10, 5), "eth1": (4, 4)}, {"eth0": (10, 5)}], (14, 9), id="a card goes"
        ),
        pytest.param([{"eth0": (10, 5)}, {"eth0": (3, 1)}], (13, 6), id="began again from zero"),
        pytest.param(
            [{"lo": (9, 9), "veth1": (9, 9), "docker0": (9, 9), "hm-eg1": (9, 9), "wg0": (9, 9)}],
            (0, 0),
            id="what never leaves, or is carried by another",
        ),
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
