"""The CPU's temperature, from the kernel's sensors: those of the CPU alone, found once.

psutil would read every sensor of the machine, and some wake a disk or wait for a slow bus.
"""

from collections.abc import Iterator
from pathlib import Path

SYS = Path("/sys/class")
CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")  # of hwmon
WHOLE = ("Package", "Tctl", "Tdie")  # labels of what stands for all cores of a socket
ZONES = ("x86_pkg_temp", "cpu", "soc", "acpitz")  # of thermal, the best first; where no chip is


class CpuTemperature:
    """Of the hottest socket or core."""

    def __init__(self, root: Path = SYS) -> None:
        self._files = _chips(root / "hwmon") or _zones(root / "thermal")

    def read(self) -> float | None:
        """In °C; None: there is no sensor, or it does not answer."""
        found = [value for value in map(_celsius, self._files) if value is not None]
        return max(found, default=None)


def _chips(folder: Path) -> list[Path]:
    inputs = [path for chip in _named(folder, "name", CHIPS) for path in chip.glob("temp*_input")]
    whole = [path for path in inputs if _label(path).startswith(WHOLE)]
    return whole or inputs


def _zones(folder: Path) -> list[Path]:
    for kind in ZONES:
        if found := [zone / "temp" for zone in _named(folder, "type", (kind,))]:
            return found
    return []


def _named(folder: Path, name: str, starts: tuple[str, ...]) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if _text(path / name).startswith(starts))


def _label(path: Path) -> str:
    return _text(path.with_name(path.name.replace("_input", "_label")))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _celsius(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1000 if text.lstrip("-").isdecimal() else None
