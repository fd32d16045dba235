"""What a monitor of GPUs decides."""

import pytest

from procs.monitor.gpu_core import (
    RETURN_AFTER_S,
    STALE_S,
    Blame,
    Card,
    Seen,
    alert_of_set,
    all_alerts,
    blame,
    lost,
    next_card,
    readings,
    rules,
    throttle_reasons,
    unusable,
    watched,
)
from shared.messages import GpuSample
from shared.settings import Threshold


def sample(xid: int | None = None, celsius: float | None = 40.0, used: int | None = 1) -> GpuSample:
    return GpuSample(
        index=3, uuid="GPU-1", name="H", temperature_c=celsius, memory_used_bytes=used,
        memory_total_bytes=100, driver_version="570", xid=xid,
    )  # fmt: skip


GONE = lost("GPU-1", "it fell off the bus", sample())


@pytest.mark.parametrize(
    ("code", "is_needed", "whose"),
    [
        pytest.param(3, False, Blame.FIGURE, id="not supported"),
        pytest.param(3, True, Blame.FIGURE, id="not supported, where others have it"),
        pytest.param(999, False, Blame.FIGURE, id="unknown, at a sensor"),
        pytest.param(999, True, Blame.CARD, id="unknown, at what every card answers"),
        pytest.param(15, False, Blame.CARD, id="lost"),
        pytest.param(16, False, Blame.CARD, id="reset required"),
        pytest.param(18, False, Blame.DRIVER, id="mismatch"),
        pytest.param(9, True, Blame.DRIVER, id="not loaded"),
    ],
)
def test_whose_fault_an_error_is(code: int, is_needed: bool, whose: Blame) -> None:
    assert blame(code, is_needed) is whose


def test_throttling_is_named_but_not_idleness() -> None:
    assert throttle_reasons(0x1) == throttle_reasons(0) == ()
    assert throttle_reasons(0x45) == ("power cap", "hardware thermal")
    assert throttle_reasons(0x401) == ("0x400",)


def test_an_error_of_a_program_takes_no_card_out() -> None:
    assert unusable(None) == unusable(13) == unusable(31) == ""
    assert unusable(79).startswith("XID 79")


def after(*steps: tuple[float, Seen | None, str]) -> Card:
    card: Card | None = None
    for now_s, seen, why in steps:
        card = next_card(card, "GPU-1", seen, why, now_s)
    assert card is not None
    return card


def seen(at_s: float, reading: GpuSample | None = None) -> Seen:
    return Seen(reading or sample(), at_s)


@pytest.mark.parametrize(
    ("steps", "reachable", "why"),
    [
        pytest.param([(0.0, seen(0.0), "")], True, "", id="well from the beginning"),
        pytest.param([(0.0, None, "")], False, "has not answered yet", id="never read"),
        pytest.param([(0.0, seen(0.0, GONE), "")], False, "fell off", id="lost"),
        pytest.param([(0.0, seen(0.0), "no driver")], False, "no driver", id="no driver"),
        pytest.param([(STALE_S - 0.1, seen(0.0), "")], True, "", id="a late reading"),
        pytest.param([(STALE_S, seen(0.0), "")], False, "answered for 3 s", id="a stale reading"),
        pytest.param(
            [(0.0, seen(0.0, sample(xid=79)), "")], False, "XID 79", id="an error of its own"
        ),
        pytest.param(
            [(0.0, seen(0.0, GONE), ""), (1.0, seen(1.0), "")], False, "answers again", id="back"
        ),
        pytest.param(
            [(0.0, seen(0.0, GONE), ""), (RETURN_AFTER_S, seen(RETURN_AFTER_S), "")],
            True, "", id="back for long",
        ),
        pytest.param(
            [(0.0, seen(0.0, GONE), ""), (2.0, seen(2.0), ""), (2.5, seen(2.5, GONE), ""),
             (4.0, seen(4.0), "")],
            False, "answers again", id="it flaps: counted anew",
        ),
    ],
)  # fmt: skip
def test_when_a_card_can_be_used(
    steps: list[tuple[float, Seen | None, str]], reachable: bool, why: str
) -> None:
    told = after(*steps).told
    assert told.reachable is reachable
    assert why in told.reason
    assert bool(told.reason) is not reachable


def test_a_lost_card_keeps_what_it_is_and_not_what_it_did() -> None:
    told = after((0.0, seen(0.0), ""), (1.0, seen(1.0, lost("GPU-1", "gone")), "")).told
    assert (told.index, told.name, told.memory_total_bytes, told.driver_version) == (
        3, "H", 100, "570",
    )  # fmt: skip
    assert (told.temperature_c, told.memory_used_bytes) == (None, None)


def test_what_is_not_told_is_not_judged() -> None:
    assert readings(sample(celsius=None, used=None)) == {"gpu_lost": 0.0}
    assert readings(sample()) == {"gpu_lost": 0.0, "gpu_temperature": 40.0, "gpu_memory": 1.0}
    assert readings(GONE) == {"gpu_lost": 1.0}


def raised(*readings_: tuple[float, GpuSample]) -> list[tuple[str, str, float]]:
    card: Card | None = None
    for now_s, reading in readings_:
        card = next_card(card, "GPU-1", Seen(reading, now_s), "", now_s)
        card = watched(card, THRESHOLDS, now_s, now_s)
    assert card is not None
    return [(a.rule, a.subject, a.value) for a in all_alerts({"GPU-1": card})]


THRESHOLDS = rules(Threshold(90.0, 85.0, 10.0), Threshold(98.0, 95.0, 30.0))
HOT, WARM, FULL = sample(celsius=91.0), sample(celsius=86.0), sample(used=99)


@pytest.mark.parametrize(
    ("steps", "alerts"),
    [
        pytest.param([(0.0, HOT), (9.0, HOT)], [], id="hot, not for long"),
        pytest.param([(0.0, HOT), (10.0, HOT)], [("gpu_temperature", "GPU-1", 91.0)], id="hot"),
        pytest.param(
            [(0.0, HOT), (10.0, HOT), (11.0, WARM)], [("gpu_temperature", "GPU-1", 86.0)],
            id="between the two",
        ),
        pytest.param(
            [(0.0, HOT), (10.0, HOT), (11.0, sample()), (21.0, sample())], [], id="cool again"
        ),
        pytest.param([(0.0, FULL), (30.0, FULL)], [("gpu_memory", "GPU-1", 99.0)], id="full"),
        pytest.param([(0.0, GONE)], [("gpu_lost", "GPU-1", 1.0)], id="lost, at once"),
        pytest.param(
            [(0.0, HOT), (10.0, HOT), (11.0, GONE)], [("gpu_lost", "GPU-1", 1.0)],
            id="lost: nobody knows how hot",
        ),
    ],
)  # fmt: skip
def test_alerts_of_a_card(
    steps: list[tuple[float, GpuSample]], alerts: list[tuple[str, str, float]]
) -> None:
    assert raised(*steps) == alerts


def test_a_set_of_which_no_card_is_known_has_the_alert_itself() -> None:
    assert [a.subject for a in alert_of_set("gpu0", "no driver", {}, 5.0)] == ["gpu0"]
    assert alert_of_set("gpu0", "", {}, 5.0) == ()
    assert alert_of_set("gpu0", "no driver", {"GPU-1": after((0.0, seen(0.0), ""))}, 5.0) == ()
