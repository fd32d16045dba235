"""What `hivemind-worker` says and writes. Pure: no clock, no files, no sockets."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shared.messages import (
    Alert,
    GpuLoad,
    GpuSample,
    HeldTask,
    HostLoad,
    LinkState,
    Message,
    NodePhase,
    OwnerWant,
    ProcessInfo,
    ProcessState,
    TaskState,
    VpnState,
)
from shared.topics import TOPICS

M = TypeVar("M", bound=Message)

UNPRINTABLE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if n != 10}
GIB = 2**30
CALLED_OFF = (NodePhase.READY, NodePhase.PAUSED)


def render_supervisor(template: str, root: Path, home: Path) -> str:
    """The product's supervisor.conf for another home: what it keeps lies there."""
    start = f"{root}/procs/start.sh"
    for found, put in (
        ("%(here)s/procs/start.sh", shlex.quote(start)),
        ("%(here)s/.supervisor.sock", str(supervisor_socket(home))),
        ("%(here)s/.supervisord.pid", f"{home}/run/supervisord.pid"),
        ("%(here)s/.supervisord.log", f"{home}/log/supervisord.log"),
        ("%(here)s/var/", f"{home}/"),
        ("%(here)s", str(root)),
    ):
        template = template.replace(found, put.replace("%", "%%"))
    return template


def supervisor_socket(home: Path) -> Path:
    return home / "run" / "supervisor.sock"


class News:
    """The newest fresh STATE of each (topic, source)."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], Message] = {}

    def take(self, source: str, message: Message, now_s: float) -> None:
        if now_s - message.at_s < TOPICS[message.topic].stale_after_s:
            self._latest[message.topic, source] = message

    def __bool__(self) -> bool:
        return bool(self._latest)

    def has(self, topics: Iterable[tuple[str, str]]) -> bool:
        """Whether each (topic, source) has been heard, and knew what it spoke of."""
        return all(key in self._latest and self._latest[key].synced for key in topics)

    def silence_of(self, source: str) -> str:
        """Why there is nothing to show of `source`."""
        heard = any(known == source for _, known in self._latest)
        return f"{source} is starting" if heard else f"no word from {source}"

    def all_of(self, kind: type[M]) -> list[M]:
        return [m for m in self._latest.values() if isinstance(m, kind) and m.synced]

    def one(self, kind: type[M]) -> M | None:
        return max(self.all_of(kind), key=lambda m: m.at_s, default=None)

    def fresh(self, kind: type[M], now_s: float) -> M | None:
        """None: nobody has spoken lately."""
        message = self.one(kind)
        if message is None or now_s - message.at_s >= TOPICS[message.topic].stale_after_s:
            return None
        return message

    def alerts(self) -> list[str]:
        """What the owner should look at, each one line."""
        found = [alert_line(a) for load in self.all_of(HostLoad) for a in load.alerts]
        found += [_gpu_alert(load, a) for load in self.all_of(GpuLoad) for a in load.alerts]
        processes, tasks = self.one(ProcessState), self.one(TaskState)
        if link := self.one(LinkState):
            found += link.warnings
        if processes:
            found += [f"{name} restarts too often" for name in processes.alerts]
        found += [alert_line(alert) for alert in (tasks.alerts if tasks else ())]
        if tasks and not tasks.engine.available:
            found.append(f"no Docker engine: {tasks.engine.detail}")
        return found


def _gpu_alert(load: GpuLoad, alert: Alert) -> str:
    reason = load.reason_of(alert)
    return f"{alert.subject}: {reason}" if reason else alert_line(alert)


def alert_line(alert: Alert) -> str:
    return f"{alert.rule} {alert.subject}: {alert.value:g}, threshold {alert.threshold:g}"


@dataclass(frozen=True)
class Drain:
    """Waits for the last task of a node that takes no new one since `since_s`."""

    since_s: float

    def left(self, news: News, now_s: float) -> int | None:
        """How many tasks are held or owed; None: nobody can say at the moment."""
        link, tasks = news.fresh(LinkState, now_s), news.fresh(TaskState, now_s)
        if link is None or tasks is None or link.node_state is NodePhase.READY:
            return None
        if min(link.at_s, tasks.at_s) < self.since_s:
            return None
        return max(link.undelivered_tasks, len(tasks.tasks))

    def is_called_off(self, news: News) -> bool:
        owner = news.one(OwnerWant)
        return owner is not None and owner.at_s > self.since_s and owner.wish in CALLED_OFF

    @staticmethod
    def told(left: int | None) -> str:
        if left is None:
            return "no word from the worker's processes"
        return f"{left} task{'' if left == 1 else 's'} left"


def status_json(news: News) -> str:
    """The same as the text, for programs; null where a process says nothing."""
    tasks, processes = news.one(TaskState), news.one(ProcessState)
    whole = {
        "node": _fields(news.one(LinkState)),
        "owner": _fields(news.one(OwnerWant)),
        "engine": msgspec.to_builtins(tasks.engine) if tasks else None,
        "capacity": msgspec.to_builtins(tasks.capacity) if tasks else None,
        "tasks": msgspec.to_builtins(tasks.tasks) if tasks else None,
        "processes": msgspec.to_builtins(processes.processes) if processes else None,
        "host": _fields(news.one(HostLoad)),
        "gpus": [gpu for load in news.all_of(GpuLoad) for gpu in msgspec.to_builtins(load.gpus)],
        "vpn": _fields(news.one(VpnState)),
        "alerts": news.alerts(),
    }
    return msgspec.json.encode(whole).decode()


def _fields(message: Message | None) -> Mapping[str, Any] | None:
    if message is None:
        return None
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {k: v for k, v in fields.items() if k not in ("kind", "at_s", "synced")}


def status_text(news: News, now_unix_s: float) -> str:
    """For people."""
    lines = [*_node_lines(news, now_unix_s), *_machine_lines(news)]
    lines += _gpu_lines(news)
    lines += _process_lines(news, now_unix_s)
    lines += _task_lines(news, now_unix_s)
    alerts = news.alerts()
    lines += ["alerts", *(f"  {line}" for line in alerts)] if alerts else ["alerts     none"]
    return "\n".join(lines).translate(UNPRINTABLE)


def _node_lines(news: News, now_unix_s: float) -> list[str]:
    link = news.one(LinkState)
    if link is None:
        return [f"node       {news.silence_of('master_link')}"]
    name = f"{link.node_name} ({link.node_id or 'not registered'})"
    state = link.node_state.upper() + (
        f": {link.node_state_reason}" if link.node_state_reason else ""
    )
    since = "no heartbeat yet"
    if link.heartbeat_acked_unix_s:
        since = f"last heartbeat {duration(now_unix_s - link.heartbeat_acked_unix_s)} ago"
    detail = f" ({link.detail})" if link.detail else ""
    return [
        f"node       {name}  {state}  trust level {link.trust_level}",
        f"master     {link.master_url or 'none'}  {link.phase}{detail}, {since}",
        *_trust_lines(link, now_unix_s),
        f"rewards    {link.reward_total} in all, {link.reward_last} last",
    ]


def _trust_lines(link: LinkState, now_unix_s: float) -> list[str]:
    if not link.authority_digest:
        return []
    left = "no certificate yet"
    if link.certificate_until_unix_s:
        left = f"certificate good for {duration(link.certificate_until_unix_s - now_unix_s)}"
    return [f"authority  {link.authority_digest}, {left}"]


def _machine_lines(news: News) -> list[str]:
    lines = []
    if owner := news.one(OwnerWant):
        lines.append(f"owner      {owner.wish}")
    if tasks := news.one(TaskState):
        engine = tasks.engine
        lines.append(
            f"engine     {'Docker ' + engine.version if engine.available else 'away'}"
            + (f" ({engine.detail})" if engine.detail else "")
        )
    if load := news.one(HostLoad):
        lines.append(
            f"machine    CPU {load.cpu_pct:.0f} %, memory {load.memory_pct:.0f} %,"
            f" disk {load.disk_free_bytes / GIB:.0f} GiB free{_tasks_part(load)}"
        )
    return lines


def _tasks_part(load: HostLoad) -> str:
    if load.tasks_cpu_pct is None or load.tasks_memory_bytes is None:
        return ""
    memory = f"{load.tasks_memory_bytes / GIB:.1f} GiB"
    return f"; of it tasks CPU {load.tasks_cpu_pct:.0f} %, memory {memory}"


def _gpu_lines(news: News) -> list[str]:
    gpus = [gpu for load in news.all_of(GpuLoad) for gpu in load.gpus]
    lines = [_gpu_line(gpu) for gpu in sorted(gpus, key=lambda gpu: (gpu.index, gpu.mig_of))]
    return ["GPUs", *lines] if lines else []


def _gpu_line(gpu: GpuSample) -> str:
    name = f"  {gpu.index if gpu.index >= 0 else gpu.uuid} {gpu.name}".rstrip()
    if not gpu.reachable:
        return f"{name}  lost: {gpu.reason}"
    used = None if gpu.memory_used_bytes is None else gpu.memory_used_bytes / GIB
    figures = (
        ("use {:.0f} %", gpu.util_pct),
        (f"{{:.1f}} of {gpu.memory_total_bytes / GIB:.1f} GiB", used),
        ("{:.0f} °C", gpu.temperature_c),
        ("{:.0f} W", gpu.power_w),
    )
    told = [text.format(value) for text, value in figures if value is not None]
    told += ["split by MIG: no task gets it"] if gpu.is_split else []
    return f"{name}  {', '.join(told)}"


def _process_lines(news: News, now_unix_s: float) -> list[str]:
    state = news.one(ProcessState)
    if state is None:
        return [f"processes  {news.silence_of('watchdog')}"]
    return ["processes", *(_process_line(info, now_unix_s) for info in state.processes)]


def _process_line(info: ProcessInfo, now_unix_s: float) -> str:
    since = f"since {duration(now_unix_s - info.since_unix_s)}" if info.since_unix_s else ""
    line = f"  {info.name:<14} {info.state:<9} pid {info.pid:<8} restarts {info.restarts:<4}"
    return f"{line} {since} {info.detail}".rstrip()


def _task_lines(news: News, now_unix_s: float) -> list[str]:
    state = news.one(TaskState)
    if state is None:
        return [f"tasks      {news.silence_of('executor')}"]
    if not state.tasks:
        return ["tasks      none"]
    return ["tasks", *(_task_line(task, now_unix_s) for task in state.tasks)]


def _task_line(task: HeldTask, now_unix_s: float) -> str:
    for_s = f" {duration(now_unix_s - task.phases[-1].at_unix_s)}" if task.phases else ""
    use = ""
    if task.use:
        use = f"  CPU {task.use.cpu_pct:.0f} %, memory {task.use.memory_bytes / GIB:.2f} GiB"
    detail = f"  {task.detail}" if task.detail else ""
    return f"  {task.directory:<20} {task.phase}{for_s}  {task.image}{use}{detail}"


def duration(seconds: float) -> str:
    """3 s, 12 min, 5 h, 2 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
