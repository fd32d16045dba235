"""The fault table of NVML: every fault at every call, through NVIDIA's own binding."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from procs.monitor.gpu_core import Blame, blame, reason
from tests.fakes.fake_nvml import ONE, TWO, FakeNvml
from tests.fakes.nvml_faults import CODES, FUNCTIONS, is_called
from tests.fakes.supervised import ROOT

Row = dict[str, Any]
FIGURE_OF = {  # what one of a card's calls is for
    "nvmlDeviceGetUtilizationRates": ("util_pct",),
    "nvmlDeviceGetPowerUsage": ("power_w",),
    "nvmlDeviceGetClockInfo": ("clock_sm_mhz", "clock_memory_mhz"),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("throttle_reasons",),
    "nvmlDeviceGetTotalEccErrors": ("ecc_corrected", "ecc_uncorrected"),
    "nvmlDeviceGetComputeRunningProcesses_v3": ("processes",),
}
AT_THE_OPENING = ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetName")
OF_THE_DRIVER = ("nvmlInitWithFlags", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2")


def table(kind: str, folder: Path) -> list[Row]:
    nvml = FakeNvml(folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.nvml_faults", kind, str(folder)],
        cwd=ROOT, env=nvml.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows: list[Row] = json.loads(done.stdout)
    return rows


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return table("codes", tmp_path_factory.mktemp("nvml"))


def test_every_error_of_every_call_was_tried(codes: list[Row]) -> None:
    assert {(row["function"], row["code"]) for row in codes[1:]} == {
        (function, code) for function in FUNCTIONS for code in CODES
    }
    assert len(FUNCTIONS) >= 25


def test_no_error_outlives_its_cause(codes: list[Row]) -> None:
    before = codes[0]["before"]
    assert before.keys() == {ONE.uuid, TWO.uuid, "MIG-1"}
    for row in codes[1:]:
        assert row["after"] == before, row


def test_no_error_of_one_card_is_anothers(codes: list[Row]) -> None:
    """But for those that speak of the driver, and those at the driver's own calls."""
    other = codes[0]["before"][TWO.uuid]
    for row in codes[1:]:
        for told in (row["within"], row["anew"]):
            if "driver" in told:
                of_driver = blame(row["code"], False) is Blame.DRIVER
                assert of_driver or row["function"] in OF_THE_DRIVER, row
            else:
                assert told[TWO.uuid] == other, row


def test_a_card_is_lost_for_a_reason_or_tells_less(codes: list[Row]) -> None:
    before = codes[0]["before"]
    for row in codes[1:]:
        for told in (row["within"], row["anew"]):
            card = told.get(ONE.uuid)
            if card and card["reachable"]:
                changed = {name for name, value in card.items() if value != before[ONE.uuid][name]}
                assert all(not card[name] for name in changed), row
            elif card:
                assert card["reason"], row
                assert card["util_pct"] is card["memory_used_bytes"] is None, row


@pytest.mark.parametrize("function", FIGURE_OF)
def test_an_error_takes_out_what_it_speaks_of(codes: list[Row], function: str) -> None:
    before = codes[0]["before"]
    for row in codes[1:]:
        if row["function"] != function:
            continue
        told, code = row["anew"], row["code"]
        if blame(code, False) is Blame.DRIVER:
            assert told["driver"]["reason"] == reason(code, ""), row
        elif blame(code, False) is Blame.CARD:
            assert told[ONE.uuid]["reason"] == reason(code, ""), row
        else:
            less = dict.fromkeys(FIGURE_OF[function])
            assert told[ONE.uuid] == before[ONE.uuid] | less, row


@pytest.mark.parametrize("function", AT_THE_OPENING)
def test_a_card_that_can_not_be_opened_is_missed(codes: list[Row], function: str) -> None:
    for row in codes[1:]:
        if row["function"] == function and row["code"] == 15:
            assert row["anew"][ONE.uuid]["reason"] == "the driver has 1 cards, not this one"


@pytest.mark.parametrize("function", OF_THE_DRIVER)
def test_a_driver_that_does_not_begin_is_told(codes: list[Row], function: str) -> None:
    before = codes[0]["before"]
    for row in codes[1:]:
        if row["function"] == function:
            assert row["anew"]["driver"]["reason"], row
            assert row["within"] == before, "a session that is open does not call it"


def test_an_error_of_an_instance_is_not_its_cards(tmp_path: Path) -> None:
    first, *rows = table("instances", tmp_path)
    before = first["before"]
    lost = [row for row in rows if not row["within"].get("MIG-1", {"reachable": True})["reachable"]]
    assert {row["code"] for row in lost} >= {15, 16}
    for row in rows:
        told = row["within"]
        if "driver" in told:
            assert blame(row["code"], False) is Blame.DRIVER, row
        else:
            assert [told[card.uuid] for card in (ONE, TWO)] == [
                before[card.uuid] for card in (ONE, TWO)
            ], row


def test_every_call_may_hang_and_the_reading_goes_on(tmp_path: Path) -> None:
    """In a sleep that a signal ends, and in one that the kernel calls uninterruptible."""
    *rows, end = table("hangs", tmp_path)
    tried = [function for function in FUNCTIONS if is_called(function)]
    assert [(row["function"], row["fault"]) for row in rows] == [
        (function, fault) for function in tried for fault in ("hang", "hang_d")
    ]
    for row in rows:
        assert row["states"], row
        assert all(state is (row["fault"] == "hang_d") for state in row["states"]), row
        assert row["after"].keys() == {ONE.uuid, TWO.uuid, "MIG-1"}, row
        assert all(card["reachable"] for card in row["after"].values()), row
    assert end["threads"] <= 1 + len(rows), "one for each reader, none that was let go"
