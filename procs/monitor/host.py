"""Reads the machine: all of psutil in the program, and what it does not give. Judges nothing.

What all tasks use together is read in tasks_use.py, the CPU's temperature in temperature.py.
"""

import os
import platform
from pathlib import Path

import msgspec
import psutil

from procs.monitor.core import CpuUse, NetworkTotal, counted, parse_cpus, parse_pressure
from procs.monitor.tasks_use import TasksUse
from procs.monitor.temperature import CpuTemperature
from shared.messages import HostLoad, Inventory

STAT = Path("/proc/stat")
PRESSURE = Path("/proc/pressure")
CARDS = Path("/sys/class/net")
SLOW_EVERY = 5  # readings: swap moves slowly and costs as much as all else, sensors wake cores


class Host:
    """One machine, with the disk that holds `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._network = NetworkTotal()
        self._tasks = TasksUse()
        self._sensors = CpuTemperature()
        self._swap_pct, self._reads = 0.0, 0
        self._temperature_c: float | None = None
        self._inventory = _inventory()
        self._cpus = CpuUse(parse_cpus(STAT.read_text()))  # use is measured from here on

    def read(self, now_s: float, cpu_score: float) -> HostLoad:
        """A reading; CPU is the average since the one before."""
        memory = psutil.virtual_memory()
        disk = os.statvfs(self._home)
        self._read_slow()
        self._network.add(_counters())
        self._cpus.add(parse_cpus(STAT.read_text()))
        tasks_cpu_s, tasks_memory_bytes = self._tasks.read()
        return HostLoad(
            at_s=now_s,
            inventory=self._with_score(cpu_score),
            cpu_pct=self._cpus.all_pct,
            cores_pct=self._cpus.cores_pct,
            tasks_cpu_pct=self._cpus.part_pct(tasks_cpu_s, now_s),
            memory_pct=memory.percent,
            memory_used_bytes=memory.total - memory.available,
            tasks_memory_bytes=tasks_memory_bytes,
            swap_pct=self._swap_pct,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            disk_total_bytes=disk.f_blocks * disk.f_frsize,
            network_received_bytes=self._network.received_bytes,
            network_sent_bytes=self._network.sent_bytes,
            load_1m=os.getloadavg()[0],
            pressure_cpu_pct=_pressure("cpu"),
            pressure_memory_pct=_pressure("memory"),
            pressure_io_pct=_pressure("io"),
            temperature_c=self._temperature_c,
        )

    def _read_slow(self) -> None:
        if self._reads % SLOW_EVERY == 0:
            self._swap_pct = psutil.swap_memory().percent
            self._temperature_c = self._sensors.read()
        self._reads += 1

    def _with_score(self, cpu_score: float) -> Inventory:
        if cpu_score != self._inventory.cpu_score:
            self._inventory = msgspec.structs.replace(self._inventory, cpu_score=cpu_score)
        return self._inventory


def _inventory() -> Inventory:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = "Linux"
    system = os.uname()
    return Inventory(
        operating_system=name,
        kernel=system.release,
        architecture=system.machine,
        cpu_count=psutil.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
    )


def _counters() -> dict[str, tuple[int, int]]:
    """Bytes received and sent by each card that counts."""
    cards = psutil.net_io_counters(pernic=True, nowrap=False)
    real = {name for name in cards if os.access(CARDS / name / "device", os.F_OK)}
    return {name: (cards[name].bytes_recv, cards[name].bytes_sent) for name in counted(cards, real)}


def _pressure(resource: str) -> float | None:
    """Share of the last ten seconds in which some process waited; None where it isn't known."""
    try:
        return parse_pressure((PRESSURE / resource).read_text())
    except OSError:
        return None
