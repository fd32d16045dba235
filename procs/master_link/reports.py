"""What ReportNodeStatus says of an interval: averages, peaks, alerts, the reward. Pure.

Intervals are [from, to) without gap or overlap, also when the wall clock is set back.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from procs.master_link import wire
from procs.master_link.alert_book import MOST, AlertBook
from shared import rewards
from shared.messages import GpuLoad, GpuSample, HostLoad, ProcessState, TaskState
from shared.pb import hivemind_pb2 as pb

MOST_MERGED = 1000  # intervals in one report: about 30 kB
LONGEST_GAP_S = 600.0  # a worker that was away longer measured nothing: a new beginning
HOST_FIELDS = {  # the contract's field -> ours, where the average is of what was sampled
    "cpu_percent": "cpu_pct",
    "memory_percent": "memory_pct",
    "memory_used_bytes": "memory_used_bytes",
    "disk_free_bytes": "disk_free_bytes",
    "load_1m": "load_1m",
    "pressure_cpu_percent": "pressure_cpu_pct",
    "pressure_memory_percent": "pressure_memory_pct",
    "pressure_io_percent": "pressure_io_pct",
}
GPU_FIELDS = {
    "utilization_percent": "util_pct",
    "memory_used_bytes": "memory_used_bytes",
    "temperature_celsius": "temperature_c",
    "power_watts": "power_w",
}
INTEGERS = frozenset({"memory_used_bytes", "disk_free_bytes"})
LOWEST_IS_PEAK = frozenset({"disk_free_bytes"})


class Series:
    """Sums and extremes of the fields of one thing: as small after a day as after a second."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields
        self._figures: dict[str, tuple[int, float, float]] = {}  # count, sum, peak

    def add(self, sample: HostLoad | GpuSample) -> None:
        for name, ours in self._fields.items():
            value = getattr(sample, ours)
            if value is not None and math.isfinite(value):
                count, total, peak = self._figures.get(name, (0, 0.0, float(value)))
                self._figures[name] = count + 1, total + value, _peak(name, (peak, float(value)))

    def average(self) -> dict[str, float]:
        return {name: _typed(name, f[1] / f[0]) for name, f in self._figures.items()}

    def peak(self) -> dict[str, float]:
        return {name: _typed(name, f[2]) for name, f in self._figures.items()}


def _typed(name: str, value: float) -> float:
    return int(value) if name in INTEGERS else value


def _peak(name: str, values: Iterable[float]) -> float:
    return min(values) if name in LOWEST_IS_PEAK else max(values)


class Meter:
    """Collects one interval after the other."""

    def __init__(self, from_unix_s: float, now_s: float) -> None:
        self.from_unix_s = from_unix_s
        self._from_s = now_s
        self._counters: tuple[int, int] | None = None
        self._alerts = AlertBook(from_unix_s)
        self._heard_s: dict[str, float] = {}  # of each source of alerts, its newest word
        self._begin()

    def _begin(self) -> None:
        self._host = Series(HOST_FIELDS)
        self._gpus: dict[str, tuple[Series, bool]] = {}
        self._received = self._sent = 0
        self._last_at_s = getattr(self, "_last_at_s", -1.0)

    def add(self, load: HostLoad, gpu_loads: Iterable[GpuLoad]) -> None:
        """A sample; the same one twice counts once."""
        if load.at_s <= self._last_at_s:
            return
        self._last_at_s = load.at_s
        self._host.add(load)
        self._count_traffic(load.network_received_bytes, load.network_sent_bytes)
        for sample in (gpu for seen in gpu_loads for gpu in seen.gpus):
            series, _ = self._gpus.get(sample.uuid, (Series(GPU_FIELDS), True))
            series.add(sample)
            self._gpus[sample.uuid] = series, sample.reachable

    def hear_alerts(
        self,
        host: HostLoad | None,
        gpus: Iterable[GpuLoad],
        tasks: TaskState | None,
        now_unix_s: float,
    ) -> None:
        """Those of the machine, its GPUs, its engine and its tasks. None: silence says nothing."""
        loads = [("host", host), *((load.gpu_set, load) for load in gpus)]
        for source, load in loads:
            if load is not None and self._is_news(source, load.at_s):
                self._alerts.hear(source, load.alerts, load.cleared, now_unix_s)
        if tasks is not None and self._is_news("tasks", tasks.at_s):
            of_tasks = [alert for task in tasks.tasks for alert in task.alerts]
            self._alerts.hear("tasks", (*tasks.alerts, *of_tasks), tasks.cleared, now_unix_s)

    def _is_news(self, source: str, at_s: float) -> bool:
        is_newer = at_s > self._heard_s.get(source, -1.0)
        self._heard_s[source] = at_s
        return is_newer

    def _count_traffic(self, received: int, sent: int) -> None:
        before = self._counters or (received, sent)
        self._received += received - before[0] if received >= before[0] else received
        self._sent += sent - before[1] if sent >= before[1] else sent
        self._counters = received, sent

    def close(
        self,
        now_unix_s: float,
        now_s: float,
        processes: ProcessState | None,
        tasks: TaskState | None,
    ) -> pb.NodeStatusRequest:
        """The interval that ends now, without what only the sender knows; the next one begins."""
        to_unix_s = max(now_unix_s, self.from_unix_s + now_s - self._from_s)
        message = pb.NodeStatusRequest(
            to=wire.timestamp(to_unix_s),
            average=self._usage(peak=False),
            peak=self._usage(peak=True),
            components=wire.components(processes),
            alerts=[wire.alert(alert) for alert in self._alerts.close(to_unix_s)],
            tasks=self._tasks(tasks),
        )
        getattr(message, "from").CopyFrom(wire.timestamp(self.from_unix_s))
        message.reward = rewards.of_report(message)
        self.from_unix_s, self._from_s = to_unix_s, now_s
        self._begin()
        return message

    def _usage(self, peak: bool) -> pb.ResourceUsage:
        usage = pb.ResourceUsage(
            network_received_bytes=self._received,
            network_sent_bytes=self._sent,
            gpus=[_gpu(uuid, *seen, peak) for uuid, seen in self._gpus.items()],
        )
        for name, value in (self._host.peak() if peak else self._host.average()).items():
            setattr(usage, name, value)
        return usage

    def _tasks(self, state: TaskState | None) -> list[pb.TaskUsage]:
        """With what each task's cards did in the interval."""
        cards = {(t.task_id, t.attempt): t.gpus for t in state.tasks} if state else {}
        used = wire.task_use(state)
        for usage in used:
            known = [u for u in cards[usage.task_id, usage.attempt] if u in self._gpus]
            usage.gpus.extend(_gpu(uuid, *self._gpus[uuid], peak=False) for uuid in known)
        return used


def _gpu(uuid: str, series: Series, reachable: bool, peak: bool) -> pb.GpuUsage:
    figures = series.peak() if peak else series.average()
    unknown = [name for name in GPU_FIELDS if name not in figures]
    usage = pb.GpuUsage(uuid=uuid, reachable=reachable, unknown=unknown)
    for name, value in figures.items():
        setattr(usage, name, value)
    return usage


def first_from(last_to_unix_s: float, now_unix_s: float) -> float:
    """Where a new process goes on: at the last interval's end, unless that is long ago."""
    if last_to_unix_s and now_unix_s - last_to_unix_s < LONGEST_GAP_S:
        return last_to_unix_s
    return now_unix_s


# ------------------------------------------------------------------ two intervals into one


def can_merge(older: pb.NodeStatusRequest, newer: pb.NodeStatusRequest) -> bool:
    return len(rewards.bases(older)) + len(rewards.bases(newer)) <= MOST_MERGED


def merged(older: pb.NodeStatusRequest, newer: pb.NodeStatusRequest) -> pb.NodeStatusRequest:
    """One interval of two that were never sent: weighted averages, peaks kept, rewards added."""
    message = pb.NodeStatusRequest()
    message.CopyFrom(newer)
    getattr(message, "from").CopyFrom(getattr(older, "from"))
    weights = _length_s(older), _length_s(newer)
    message.average.CopyFrom(_merge_usage(older.average, newer.average, weights))
    message.peak.CopyFrom(_merge_usage(older.peak, newer.peak, None))
    message.reward = older.reward + newer.reward
    del message.reward_bases[:]
    message.reward_bases.extend([*rewards.bases(older), *rewards.bases(newer)])
    told = {_alert_name(alert) for alert in newer.alerts}
    before = [alert for alert in older.alerts if _alert_name(alert) not in told]
    message.alerts.extend(before[-MOST:])
    return message


def _alert_name(alert: pb.Alert) -> tuple[str, str, float]:
    return alert.rule, alert.subject, wire.seconds(alert.raised_at)


def _length_s(message: pb.NodeStatusRequest) -> float:
    return max(0.0, wire.seconds(message.to) - wire.seconds(getattr(message, "from")))


def _merge_usage(
    older: pb.ResourceUsage, newer: pb.ResourceUsage, weights: tuple[float, float] | None
) -> pb.ResourceUsage:
    message = pb.ResourceUsage(
        network_received_bytes=older.network_received_bytes + newer.network_received_bytes,
        network_sent_bytes=older.network_sent_bytes + newer.network_sent_bytes,
    )
    _merge_fields(message, older, newer, HOST_FIELDS, weights)
    before = {gpu.uuid: gpu for gpu in older.gpus}
    for gpu in newer.gpus:
        both = message.gpus.add(uuid=gpu.uuid, reachable=gpu.reachable)
        _merge_gpu(both, before.pop(gpu.uuid, gpu), gpu, weights)
    message.gpus.extend(before.values())
    return message


def _merge_gpu(
    both: pb.GpuUsage, older: pb.GpuUsage, newer: pb.GpuUsage, weights: tuple[float, float] | None
) -> None:
    """A figure that one interval lacks is the other's."""
    for name in GPU_FIELDS:
        lacking = [usage for usage in (older, newer) if name in usage.unknown]
        if len(lacking) == 2:
            both.unknown.append(name)
        elif lacking:
            setattr(both, name, getattr(newer if lacking[0] is older else older, name))
        else:
            _merge_fields(both, older, newer, (name,), weights)


Usage = pb.ResourceUsage | pb.GpuUsage


def _merge_fields(
    into: Usage,
    older: Usage,
    newer: Usage,
    names: Iterable[str],
    weights: tuple[float, float] | None,
) -> None:
    for name in names:
        values = getattr(older, name), getattr(newer, name)
        if weights is None:
            both = _peak(name, values)
        elif sum(weights) == 0:
            both = values[1]
        else:
            both = (values[0] * weights[0] + values[1] * weights[1]) / sum(weights)
        setattr(into, name, _typed(name, both))


# ------------------------------------------------------------------ what was earned, for the owner


class Reward(NamedTuple):
    """What an interval or a task earned, and for what; a row of link.db's `rewards`."""

    kind: str
    name: str  # of a task's attempt
    from_unix_s: float
    to_unix_s: float
    cpu_pct: float
    memory_pct: float
    gpu_pct: float
    reward: int
    total: int  # of intervals, with this one; 0: of a task


def of_interval(interval: pb.NodeStatusRequest, total: int) -> Reward:
    (basis,) = rewards.bases(interval)
    return Reward(
        "interval",
        "",
        wire.seconds(getattr(interval, "from")),
        wire.seconds(interval.to),
        basis.cpu_percent,
        basis.memory_percent,
        basis.gpu_percent,
        interval.reward,
        total,
    )


def of_task(result: pb.TaskResultRequest) -> Reward:
    used = result.report
    return Reward(
        "task",
        f"{result.task_id}.{result.attempt}",
        wire.seconds(used.started_at if used.HasField("started_at") else used.accepted_at),
        wire.seconds(used.finished_at),
        used.cpu_percent_average,
        used.memory_percent_average,
        used.gpu_percent_average,
        result.reward,
        0,
    )
