"""What the monitor reads, against the machine's own figures and recorded trees of the kernel's."""

import os
import time
from pathlib import Path

import psutil
import pytest

from procs.monitor.host import Host
from procs.monitor.tasks_use import TasksUse
from procs.monitor.temperature import CpuTemperature

TOLERANCE_PCT = 10.0  # two readings, a moment apart, on a machine that others use


def figures(path: str) -> dict[str, int]:
    """`Name: value kB`, a line each."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines}


def test_its_figures_are_the_machines_own(tmp_path: Path) -> None:
    host, before = Host(tmp_path), os.getloadavg()[0]
    load = host.read(time.monotonic(), 71.5)
    assert load.load_1m in (before, os.getloadavg()[0])
    memory, disk = figures("/proc/meminfo"), os.statvfs(tmp_path)
    used_bytes = 1024 * (memory["MemTotal"] - memory["MemAvailable"])
    assert load.inventory.memory_bytes == 1024 * memory["MemTotal"]
    assert load.inventory.cpu_count == os.cpu_count()
    assert load.inventory.cpu_score == 71.5
    assert load.memory_used_bytes == pytest.approx(used_bytes, rel=0.1)
    assert load.memory_pct == pytest.approx(used_bytes / memory["MemTotal"] / 10.24, abs=5)
    swap_kib = memory["SwapTotal"] - memory["SwapFree"]
    assert load.swap_pct == pytest.approx(100 * swap_kib / max(memory["SwapTotal"], 1), abs=5)
    assert load.disk_total_bytes == disk.f_blocks * disk.f_frsize
    assert load.disk_free_bytes == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.05)
    assert len(load.cores_pct) == os.cpu_count()


def spin(seconds: float) -> None:
    """One core's worth, of this very process."""
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def test_cpu_is_what_was_used_in_between(tmp_path: Path) -> None:
    before = psutil.cpu_times()
    host = Host(tmp_path)
    spin(0.5)
    load = host.read(time.monotonic(), 0.0)
    after = psutil.cpu_times()
    whole = sum(after[:8]) - sum(before[:8])
    idle = after.idle + after.iowait - before.idle - before.iowait
    assert load.cpu_pct == pytest.approx(100 * (1 - idle / whole), abs=TOLERANCE_PCT)
    assert load.cpu_pct > 0
    mean = sum(load.cores_pct) / len(load.cores_pct)
    assert load.cpu_pct == pytest.approx(mean, abs=TOLERANCE_PCT)


def test_a_busy_core_is_told_from_the_others(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    number = max(mine)
    os.sched_setaffinity(0, {number})
    try:
        host = Host(tmp_path)
        spin(0.5)
        load = host.read(time.monotonic(), 0.0)
    finally:
        os.sched_setaffinity(0, mine)
    assert load.cores_pct[number] >= 80


def test_the_temperature_is_the_hottest_that_the_cpu_has() -> None:
    found = CpuTemperature().read()
    chips = psutil.sensors_temperatures()
    known = [chips.get(name, []) for name in ("coretemp", "k10temp", "cpu_thermal")]
    cpu = [sensor.current for chip in known for sensor in chip]
    if cpu:
        assert found is not None
        assert min(cpu) - 5 <= found <= max(cpu) + 5
    else:
        assert found is None or 0 < found < 120


def pressures() -> dict[str, float | None]:
    """The kernel's own; None: it has none."""
    found: dict[str, float | None] = {}
    for name in ("cpu", "memory", "io"):
        path = Path("/proc/pressure") / name
        text = path.read_text() if path.exists() else ""
        found[name] = float(text.split("avg10=")[1].split()[0]) if text else None
    return found


def test_pressure_and_network_are_the_kernels(tmp_path: Path) -> None:
    host, before = Host(tmp_path), pressures()
    load = host.read(time.monotonic(), 0.0)
    after = pressures()
    for name in after:
        assert getattr(load, f"pressure_{name}_pct") in (before[name], after[name])
    real = [card for card in Path("/sys/class/net").iterdir() if (card / "device").exists()]
    if real:
        received = sum(int((card / "statistics/rx_bytes").read_text()) for card in real)
        assert 0 <= received - load.network_received_bytes < 2**30


# ------------------------------------------------------------------ what all tasks use


def tree(root: Path, *, is_v2: bool, place: str = "hivemind") -> None:
    """Recorded: 12.5 s of CPU, 3 MiB of memory that can't be dropped."""
    stat = "cache 9\nrss 9\ntotal_cache 9\ntotal_rss 2097152\ntotal_shmem 1048576\ntotal_swap 0\n"
    files = {
        f"cpuacct/{place}/cpuacct.usage": "12500000000\n", f"memory/{place}/memory.stat": stat,
    }  # fmt: skip
    if is_v2:
        files = {
            "cgroup.controllers": "cpu memory\n",
            f"{place}/cpu.stat": "usage_usec 12500000\nuser_usec 1\nsystem_usec 2\n",
            f"{place}/memory.stat": "anon 2097152\nfile 999\nkernel 1\nshmem 1048576\n",
        }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("place", ["hivemind", "hivemind.slice"])
@pytest.mark.parametrize("is_v2", [True, False], ids=["v2", "v1"])
def test_what_all_tasks_use_is_their_groups(tmp_path: Path, is_v2: bool, place: str) -> None:
    tree(tmp_path, is_v2=is_v2, place=place)
    assert TasksUse(tmp_path).read() == (12.5, 3 * 2**20)


def test_before_the_first_task_they_use_nothing(tmp_path: Path) -> None:
    assert TasksUse(tmp_path).read() == (0.0, 0)


def test_what_the_kernel_does_not_say_is_not_zero(tmp_path: Path) -> None:
    tree(tmp_path, is_v2=True)
    (tmp_path / "hivemind" / "cpu.stat").write_text("nr_periods 0\n")
    (tmp_path / "hivemind" / "memory.stat").unlink()
    (tmp_path / "hivemind" / "memory.stat").mkdir()
    assert TasksUse(tmp_path).read() == (None, None)


# ------------------------------------------------------------------ temperature


def sensors(root: Path, files: dict[str, str]) -> CpuTemperature:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return CpuTemperature(root)


NVME = {"hwmon/hwmon0/name": "nvme", "hwmon/hwmon0/temp1_input": "99000"}


@pytest.mark.parametrize(
    ("files", "celsius"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(NVME, None, id="not of the CPU"),
        pytest.param(
            NVME | {
                "hwmon/hwmon1/name": "coretemp",
                "hwmon/hwmon1/temp1_label": "Package id 0", "hwmon/hwmon1/temp1_input": "61000",
                "hwmon/hwmon1/temp2_label": "Core 0", "hwmon/hwmon1/temp2_input": "70000",
                "hwmon/hwmon2/name": "coretemp",
                "hwmon/hwmon2/temp1_label": "Package id 1", "hwmon/hwmon2/temp1_input": "64500",
            },
            64.5,
            id="the hotter of two sockets",
        ),
        pytest.param(
            {
                "hwmon/hwmon0/name": "k10temp",
                "hwmon/hwmon0/temp1_label": "Tctl", "hwmon/hwmon0/temp1_input": "48125",
                "hwmon/hwmon0/temp3_label": "Tccd1", "hwmon/hwmon0/temp3_input": "80000",
            },
            48.125,
            id="AMD",
        ),
        pytest.param(
            {"hwmon/hwmon0/name": "cpu_thermal", "hwmon/hwmon0/temp1_input": "40000"},
            40.0,
            id="without labels",
        ),
        pytest.param(
            {
                "thermal/thermal_zone0/type": "acpitz", "thermal/thermal_zone0/temp": "90000",
                "thermal/thermal_zone1/type": "x86_pkg_temp", "thermal/thermal_zone1/temp": "45000",
            },
            45.0,
            id="a zone, the best known",
        ),
        pytest.param(
            {"hwmon/hwmon0/name": "coretemp", "hwmon/hwmon0/temp1_input": "N/A"},
            None,
            id="it does not answer",
        ),
    ],
)  # fmt: skip
def test_the_cpus_temperature_is_its_own_sensors(
    tmp_path: Path, files: dict[str, str], celsius: float | None
) -> None:
    assert sensors(tmp_path, files).read() == celsius


def test_a_sensor_that_goes_is_no_error(tmp_path: Path) -> None:
    found = sensors(tmp_path, {"hwmon/hwmon0/name": "k10temp", "hwmon/hwmon0/temp1_input": "5000"})
    assert found.read() == 5.0
    (tmp_path / "hwmon/hwmon0/temp1_input").unlink()
    assert found.read() is None
