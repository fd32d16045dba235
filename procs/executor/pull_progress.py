"""What Docker's lines say of a pull: does something move, and how far is it? Pure.

A line that says again what was known, or only that Docker waits, is no progress.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = ("Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete")
DOWNLOADED = STEPS[1:]
FETCHING, UNPACKING = "Downloading", "Extracting"


@dataclass
class _Layer:
    size: int = 0  # 0: not known yet
    fetched: float = 0.0  # parts of one
    unpacked: float = 0.0
    said: dict[str, int] = field(default_factory=dict)  # the newest figure of each status

    @property
    def done(self) -> float:
        """Fetching is one half, unpacking the other: both take their time."""
        return (self.fetched + self.unpacked) / 2


class Progress:
    """One pull, over all of Docker's own tries."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._percent = 0

    @property
    def has_layers(self) -> bool:
        return bool(self._layers)

    @property
    def percent(self) -> int:
        """Never less than it was: sizes become known on the way."""
        known = [layer.size for layer in self._layers.values() if layer.size]
        if known:
            guess = sum(known) / len(known)
            sizes = [(layer.size or guess, layer.done) for layer in self._layers.values()]
            done = sum(size * part for size, part in sizes) / sum(size for size, _ in sizes)
            self._percent = max(self._percent, min(int(100 * done), 100))
        return self._percent

    def note(self, line: Mapping[str, Any]) -> bool:
        """Did it move?"""
        status, name = line.get("status"), line.get("id", "")
        if status in STEPS:
            return self._step(self._layers.setdefault(name, _Layer()), status)
        if status in (FETCHING, UNPACKING) and name in self._layers:
            detail = line.get("progressDetail") or {}
            current, total = detail.get("current") or 0, detail.get("total") or 0
            return self._figure(self._layers[name], status, current, total)
        return False

    @staticmethod
    def _step(layer: _Layer, status: str) -> bool:
        if status in layer.said:
            return False
        layer.said[status] = 0
        if status in DOWNLOADED:
            layer.fetched = 1.0
        if status == STEPS[-1]:
            layer.unpacked = 1.0
        return True

    @staticmethod
    def _figure(layer: _Layer, status: str, current: int, total: int) -> bool:
        if layer.said.get(status) == current:
            return False
        if status == FETCHING and current == total:
            return False  # Docker says so too when the line was cut; the next step is the proof
        layer.said[status] = current
        layer.size = max(layer.size, total)
        if total <= 0:
            return True
        if status == FETCHING:  # after a cut the total is what is missing
            layer.fetched = max(layer.fetched, 1 - (total - current) / layer.size)
        else:
            layer.fetched, layer.unpacked = 1.0, max(layer.unpacked, min(current / total, 1.0))
        return True
