"""The monitor process: reads the machine once a second, publishes it, keeps samples of it.

`python -m procs.monitor host`; the argument names what is watched. The judgement is in
core.py and shared/thresholds.py, the reading in host.py, the samples in writer.py and store.py.

Reads gpu.load, for the samples. Publishes: host.load.
"""

import sys
import time
from collections.abc import Iterable, Sequence

import msgspec

from procs.monitor.core import readings, rules
from procs.monitor.host import Host
from procs.monitor.score import CpuScore
from procs.monitor.store import MIGRATIONS
from procs.monitor.writer import Writer
from shared.messages import Alert, GpuLoad, GpuSample, HostLoad
from shared.service import Context, run
from shared.settings import EXIT_BAD_SETTINGS
from shared.thresholds import Watches, alerts, cleared, next_watches

HOST = "host"
CAPABILITIES: frozenset[str] = frozenset()
READS = ("gpu.load",)
DATABASE, SCORE = "load.db", "cpu_score.json"


class HostMonitor:
    """Ties the machine to the bus and to the samples."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._host = Host(context.home)
        self._score = CpuScore(context.home / "lib" / SCORE, context.log)
        self._writer = Writer(context.home / "lib" / DATABASE, context.log)
        self._rules = rules(context.settings)
        self._watches: Watches = {}
        self._started_unix_s = time.time()
        self._is_first = True

    def beat(self, now_s: float) -> None:
        if not self._writer.is_alive:
            raise RuntimeError("the thread that writes the samples has ended")
        load = self._host.read(now_s, self._score.value)
        if self._is_first:  # CPU use over the milliseconds of our own start says nothing
            self._is_first = False
            load = HostLoad(at_s=now_s, synced=False, inventory=load.inventory)
        else:
            load = self._judge(load, now_s)
            at = int(time.time())
            self._writer.add((at, load), *((at, gpu) for gpu in self._gpus(now_s)))
        self._context.bus.publish(load)

    def _gpus(self, now_s: float) -> list[GpuSample]:
        """Those that their monitors told of a moment ago."""
        loads = self._context.bus.inbox.all_fresh(GpuLoad, now_s).values()
        return [gpu for load in loads for gpu in load.gpus]

    def _judge(self, load: HostLoad, now_s: float) -> HostLoad:
        before, subject = self._watches, self._context.settings.node_name
        self._watches = next_watches(
            before, readings(load), subject, now_s, time.time(), self._rules
        )
        self._tell(before)
        return msgspec.structs.replace(
            load,
            alerts=alerts(self._watches) + self._refused_store(),
            cleared=cleared(self._watches),
        )

    def _tell(self, before: Watches) -> None:
        was, known = {a.rule for a in alerts(before)}, set(cleared(before))
        for alert in alerts(self._watches):
            if alert.rule not in was:
                self._context.log.warning(
                    "alert %s: %g, threshold %g", alert.rule, alert.value, alert.threshold
                )
        for alert in cleared(self._watches):
            if alert not in known:
                self._context.log.info("alert %s is over", alert.rule)

    def _refused_store(self) -> tuple[Alert, ...]:
        version = self._writer.newer_version
        if version is None:
            return ()
        return (
            Alert(
                rule="newer_database", subject=DATABASE, value=version,
                threshold=len(MIGRATIONS), raised_unix_s=self._started_unix_s,
            ),
        )  # fmt: skip

    def wake(self, ready: set[int], now_s: float) -> None:
        """What the monitors of GPUs say is taken with the next beat."""

    def descriptors(self) -> Iterable[int]:
        return ()

    def close(self) -> None:
        self._writer.close()


def main(arguments: Sequence[str]) -> int:
    if list(arguments) != [HOST]:
        given = " ".join(arguments) or "nothing"
        print(f"monitor: the argument must be {HOST}, not {given}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    return run(f"monitor@{HOST}", CAPABILITIES, READS, HostMonitor)
