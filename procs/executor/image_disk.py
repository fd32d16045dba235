"""The disk that Docker keeps images on, where it is another than the home's: how full it is, and
when that is an alert. The home's own is the monitor's; where Docker's lies, the executor alone is
told.
"""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from procs.executor.engine import About
from procs.executor.jobs import Jobs
from shared.messages import Alert
from shared.settings import Settings
from shared.thresholds import Rule, Watches, alerts, cleared, next_watches

NAME = "image_disk"
LOOK_EACH_S = 10.0


@dataclass(frozen=True)
class Disk:
    """Of a file system."""

    free_bytes: int = 0
    total_bytes: int = 0

    @property
    def used_pct(self) -> float:
        return 100 * (1 - self.free_bytes / self.total_bytes)


def measure(data_root: Path, home: Path) -> Disk | None:
    """In a thread, since a file system may hang. None: it is the home's, or not on this machine."""
    try:
        if data_root.stat().st_dev == home.stat().st_dev:
            return None
        found = os.statvfs(data_root)
    except OSError:
        return None
    return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class ImageDisk:
    """The loop's side."""

    def __init__(self, settings: Settings) -> None:
        self._home, self._subject = settings.home, settings.node_name
        self._is_local = settings.docker_host.startswith("unix://")
        self._rules = (Rule(NAME, *settings.alert_image_disk),)
        self._jobs: Jobs[Disk | None] = Jobs(1, NAME)
        self._due_s = 0.0
        self._watches: Watches = {}
        self.disk = Disk()  # of no size: not known, or the home's

    def beat(self, about: About | None, now_s: float) -> None:
        """Take what was measured, and have it measured again."""
        for _, disk in self._jobs.results():
            self._judge(disk, now_s)
        if about is None or not about.data_root or not self._is_local:
            return
        if now_s >= self._due_s and not self._jobs.is_busy(NAME):
            self._due_s = now_s + LOOK_EACH_S
            self._jobs.submit(NAME, partial(measure, Path(about.data_root), self._home))

    def _judge(self, disk: Disk | None, now_s: float) -> None:
        self.disk = disk or Disk()
        values = {NAME: self.disk.used_pct} if self.disk.total_bytes else {}
        self._watches = next_watches(
            self._watches, values, self._subject, now_s, time.time(), self._rules
        )

    @property
    def alerts(self) -> tuple[Alert, ...]:
        return alerts(self._watches)

    @property
    def cleared(self) -> tuple[Alert, ...]:
        return cleared(self._watches)

    def close(self) -> None:
        self._jobs.close()
