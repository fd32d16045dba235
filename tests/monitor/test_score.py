"""How fast the CPU is: measured once, kept, and measured again on another."""

import logging
from pathlib import Path

import msgspec
import pytest

from procs.monitor.score import CPU_INFO, METHOD, CpuScore, Score, cpu_name, measure

LOG = logging.getLogger("test")
ENOUGH_S = 60.0
MINE = cpu_name(CPU_INFO.read_text())


def scored(path: Path, measured: float) -> float:
    score = CpuScore(path, LOG, lambda: measured)
    score.wait(ENOUGH_S)
    return score.value


def test_it_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "cpu_score.json"
    assert scored(path, 71.5) == 71.5
    assert scored(path, 99.0) == 71.5
    assert msgspec.json.decode(path.read_bytes(), type=Score) == Score(MINE, METHOD, 71.5)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(msgspec.json.encode(Score("a slower one", METHOD, 12.0)), id="another CPU"),
        pytest.param(msgspec.json.encode(Score(MINE, METHOD - 1, 12.0)), id="another method"),
        pytest.param(b"{", id="broken"),
    ],
)
def test_it_is_measured_again(tmp_path: Path, kept: bytes) -> None:
    path = tmp_path / "cpu_score.json"
    path.write_bytes(kept)
    assert scored(path, 99.0) == 99.0
    assert scored(path, 1.0) == 99.0


def test_one_that_can_not_be_kept_is_said_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert scored(tmp_path / "nowhere" / "cpu_score.json", 50.0) == 50.0
    assert "not kept" in caplog.text


def test_it_is_a_figure_of_the_cpu() -> None:
    assert 1 < measure() < 1000


@pytest.mark.parametrize(
    ("info", "name"),
    [
        pytest.param(
            "processor : 0\nmodel name\t: AMD EPYC\ncpu MHz : 2445.4\n\nprocessor : 1\n"
            "model name\t: AMD EPYC\ncpu MHz : 3000.1\n",
            "AMD EPYC",
            id="x86: not its clock",
        ),
        pytest.param(
            "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n", "0x41, 0xd0c", id="ARM"
        ),
        pytest.param("processor : 0\n", "", id="unknown"),
    ],
)
def test_a_cpu_is_known_by_its_name(info: str, name: str) -> None:
    assert cpu_name(info) == name
