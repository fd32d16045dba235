"""A process of the worker for the tests of shared/service.py: beats as "executor"; where the
home has a file `fail`, it raises; `refuse`: SettingsError, late.
Appends "begin", its beats' times and "close" to `<home>/story`.
"""

import os
import sys
from collections.abc import Iterable

from shared import service
from shared.messages import TaskState
from shared.settings import SettingsError


class Beating:
    """Publishes `task.state` on each beat."""

    def __init__(self, context: service.Context) -> None:
        self._context = context
        self._note("begin")
        if (context.home / "refuse").exists():
            raise SettingsError("a database is newer")

    def _note(self, text: str) -> None:
        with (self._context.home / "story").open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    def beat(self, now_s: float) -> None:
        if (self._context.home / "fail").exists():
            raise RuntimeError("as the test asked")
        self._context.bus.publish(TaskState(at_s=now_s))
        self._note(f"{now_s:.6f}")

    def wake(self, ready: set[int], now_s: float) -> None:
        pass

    def descriptors(self) -> Iterable[int]:
        return ()

    def close(self) -> None:
        self._note("close")


if __name__ == "__main__":
    sys.exit(service.run("executor", frozenset(sys.argv[1:]), (), Beating))
