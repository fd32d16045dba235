"""Reads the machine: all of psutil in the program, and /proc/pressure. Judges nothing."""

import os
import platform
from pathlib import Path

import psutil

from procs.monitor.core import NetworkTotal
from shared.messages import HostLoad, Inventory

PRESSURE = Path("/proc/pressure")
SWAP_EVERY = 5  # readings: it moves slowly, and reading it costs as much as all else


class Host:
    """One machine, with the disk that holds `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._network = NetworkTotal()
        self._swap_pct, self._reads = 0.0, 0
        self.inventory = _inventory()
        psutil.cpu_percent()  # use is measured from here to the first reading

    def read(self, now_s: float) -> HostLoad:
        """A reading; CPU is the average since the one before."""
        memory = psutil.virtual_memory()
        disk = os.statvfs(self._home)
        self._network.add(
            {
                name: (card.bytes_recv, card.bytes_sent)
                for name, card in psutil.net_io_counters(pernic=True, nowrap=False).items()
            }
        )
        return HostLoad(
            at_s=now_s,
            inventory=self.inventory,
            cpu_pct=psutil.cpu_percent(),
            memory_pct=memory.percent,
            memory_used_bytes=memory.total - memory.available,
            swap_pct=self._swap(),
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            disk_total_bytes=disk.f_blocks * disk.f_frsize,
            network_received_bytes=self._network.received_bytes,
            network_sent_bytes=self._network.sent_bytes,
            load_1m=os.getloadavg()[0],
            pressure_cpu_pct=_pressure("cpu"),
            pressure_memory_pct=_pressure("memory"),
            pressure_io_pct=_pressure("io"),
        )

    def _swap(self) -> float:
        if self._reads % SWAP_EVERY == 0:
            self._swap_pct = psutil.swap_memory().percent
        self._reads += 1
        return self._swap_pct


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


def _pressure(resource: str) -> float | None:
    """Share of the last ten seconds in which some process waited; None where it isn't known."""
    try:
        text = (PRESSURE / resource).read_text()
    except OSError:
        return None
    return parse_pressure(text)


def parse_pressure(text: str) -> float | None:
    """`some avg10=1.50 avg60=…` → 1.5"""
    for line in text.splitlines():
        kind, _, figures = line.partition(" ")
        if kind == "some" and figures.startswith("avg10="):
            return float(figures.split()[0].removeprefix("avg10="))
    return None
