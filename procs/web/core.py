"""What the web process decides: who may ask, what the owner wants, what the page is told.

Pure: no clock, no sockets, no files. What a task wrote is hostile: `harmless` first.
"""

import base64
import binascii
import codecs
import hmac
import itertools
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shared.bus import Inbox
from shared.messages import (
    Alert,
    GpuLoad,
    HeldTask,
    HostLoad,
    LinkState,
    NodePhase,
    ProcessState,
    TaskPhase,
    TaskState,
    VpnState,
)
from shared.settings import is_loopback
from shared.topics import TOPICS

WRITE_HEADER = "x-hivemind"  # a form or an image of another site can't send it
MOST_BODY_BYTES = 4096
KEPT_SAMPLES = 120  # two minutes of the machine's use
NEEDED_TOPICS = ("task.state", "link.state")  # without these two the node does no work
WISHES = (NodePhase.READY, NodePhase.PAUSED, NodePhase.DRAINING)

# ------------------------------------------------------------------ who may ask


@dataclass(frozen=True)
class Access:
    """`hosts` None: any name, since the token guards (the address is a wildcard)."""

    hosts: frozenset[str] | None
    token: str


def access_for(host: str, token: str) -> Access:
    """Names under which the page may be asked for: against DNS rebinding."""
    bare = host.strip("[]").lower()
    if bare in ("0.0.0.0", "::", "*"):
        return Access(None, token)
    local = {"localhost", "127.0.0.1", "::1"} if is_loopback(host) else set()
    return Access(frozenset(local | {bare}), token)


def refusal(
    method: str, path: str, headers: Mapping[str, str], access: Access
) -> tuple[int, str] | None:
    """Status and reason for a request that is not answered; None: go on."""
    host = headers.get("host", "")
    if access.hosts is not None and _name(f"//{host}") not in access.hosts:
        return 421, "this page is not served under that name"
    if access.token and path != "/healthz" and not _knows(access.token, headers):
        return 401, "give WEB_TOKEN as the password, or as a bearer token"
    if method in ("GET", "HEAD"):
        return None
    return _write_refusal(host, headers)


def _write_refusal(host: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    if WRITE_HEADER not in headers:
        return 403, f"a write needs the header {WRITE_HEADER}"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return 403, "a write must come from this page"
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
        return 413, f"a write has a body of at most {MOST_BODY_BYTES} bytes"
    return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _knows(token: str, headers: Mapping[str, str]) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())


# ------------------------------------------------------------------ what the owner wants


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's wishes, as `lib/owner.json` keeps them."""

    wish: NodePhase = NodePhase.READY
    stopped_tasks: tuple[str, ...] = ()
    tunnel_key_after_unix_s: float = 0.0


class Refused(ValueError):
    """A wish that can't be taken; the text is for the owner."""


def with_wish(owner: Owner, wish: str) -> Owner:
    if wish not in WISHES:
        raise Refused("wish must be " + " or ".join(WISHES))
    return msgspec.structs.replace(owner, wish=NodePhase(wish))


def with_new_tunnel_key(owner: Owner, vpn: VpnState | None, now_unix_s: float) -> Owner:
    """The tunnel's key is to be made anew, once."""
    if vpn is None:
        raise Refused("the vpn process says nothing at the moment")
    if not vpn.public_key:
        raise Refused(f"there is no tunnel whose key could be changed: {vpn.detail}")
    if vpn.key_is_owners:
        raise Refused("the tunnel's file is your own: put a new key there, and tell the master")
    return msgspec.structs.replace(owner, tunnel_key_after_unix_s=now_unix_s)


def with_stopped(owner: Owner, directory: str, tasks: TaskState | None) -> Owner:
    """Stop an attempt that is held and has not ended."""
    if tasks is None:
        raise Refused("the executor says nothing at the moment")
    held = {task.directory: task for task in tasks.tasks}
    if directory not in held:
        raise Refused(f"this node does not hold {directory}")
    if held[directory].phase.is_final:
        raise Refused(f"{directory} has ended already")
    stopped = tuple(sorted({*owner.stopped_tasks, directory}))
    return msgspec.structs.replace(owner, stopped_tasks=stopped)


def pruned(owner: Owner, tasks: TaskState | None) -> Owner:
    """Without the stopped attempts that the executor no longer holds; silence prunes nothing."""
    if tasks is None:
        return owner
    held = {task.directory for task in tasks.tasks}
    left = tuple(name for name in owner.stopped_tasks if name in held)
    if left == owner.stopped_tasks:
        return owner
    return msgspec.structs.replace(owner, stopped_tasks=left)


# ------------------------------------------------------------------ health


def topic_states(inbox: Inbox, now_s: float) -> dict[str, str]:
    """`fresh`, `starting` (it lives, and knows nothing yet) or `stale`, of each topic read."""
    states = {}
    for topic, sources in inbox.latest.items():
        if topic == "gpu.load" and not sources:
            continue  # no GPU is a normal state
        newest = max(sources.values(), key=lambda m: m.at_s, default=None)
        if newest is None or now_s - newest.at_s >= TOPICS[topic].stale_after_s:
            states[topic] = "stale"
        else:
            states[topic] = "fresh" if newest.synced else "starting"
    return states


def health(inbox: Inbox, now_s: float) -> tuple[bool, dict[str, Any]]:
    """Healthy: what the node can't work without is fresh. The rest is said."""
    states = topic_states(inbox, now_s)
    healthy = all(states.get(topic) == "fresh" for topic in NEEDED_TOPICS)
    stale = sorted(topic for topic, state in states.items() if state != "fresh")
    return healthy, {"healthy": healthy, "stale": stale, "topics": states}


# ------------------------------------------------------------------ the machine's use


class Samples:
    """The last two minutes of `host.load`; rates come from counters that only grow."""

    def __init__(self) -> None:
        self._loads: deque[HostLoad] = deque(maxlen=KEPT_SAMPLES + 1)

    def add(self, load: HostLoad) -> None:
        if not self._loads or load.at_s > self._loads[-1].at_s:
            self._loads.append(load)

    def series(self) -> dict[str, list[float]]:
        """What is not known is drawn as nothing."""
        loads = list(self._loads)
        pairs, shown = list(itertools.pairwise(loads)), loads[-KEPT_SAMPLES:]
        return {
            "cpu_pct": [round(load.cpu_pct, 1) for load in shown],
            "tasks_cpu_pct": [round(load.tasks_cpu_pct or 0.0, 1) for load in shown],
            "memory_pct": [round(load.memory_pct, 1) for load in shown],
            "tasks_memory_pct": [_tasks_memory_pct(load) for load in shown],
            "received_bytes_per_s": [
                _rate(a.network_received_bytes, b.network_received_bytes, b.at_s - a.at_s)
                for a, b in pairs
            ],
            "sent_bytes_per_s": [
                _rate(a.network_sent_bytes, b.network_sent_bytes, b.at_s - a.at_s) for a, b in pairs
            ],
        }


def _tasks_memory_pct(load: HostLoad) -> float:
    whole = load.inventory.memory_bytes
    return round(100 * (load.tasks_memory_bytes or 0) / whole, 1) if whole else 0.0


def _rate(before: int, after: int, seconds: float) -> float:
    return round(max(0, after - before) / seconds)


# ------------------------------------------------------------------ the page


def page(
    inbox: Inbox,
    owner: Owner,
    samples: Samples,
    history: dict[str, Any] | None,
    now_s: float,
    now_unix_s: float,
) -> dict[str, Any]:
    """All that the page shows; null where a process says nothing."""
    link, tasks = inbox.fresh(LinkState, now_s), inbox.fresh(TaskState, now_s)
    processes, host = inbox.fresh(ProcessState, now_s), inbox.fresh(HostLoad, now_s)
    gpus = [gpu for load in inbox.all_fresh(GpuLoad, now_s).values() for gpu in load.gpus]
    return {
        "now_unix_s": now_unix_s,
        "topics": topic_states(inbox, now_s),
        "node": _plain(link),
        "owner": _plain(owner),
        "engine": _plain(tasks.engine) if tasks else None,
        "tasks": [_task(task, owner) for task in tasks.tasks] if tasks else None,
        "processes": _plain(processes.processes) if processes else None,
        "host": _plain(host),
        "samples": samples.series(),
        "gpus": _plain(sorted(gpus, key=lambda gpu: (gpu.index, gpu.mig_of, gpu.uuid))),
        "vpn": _plain(inbox.fresh(VpnState, now_s)),
        "alerts": alerts(inbox, now_s),
        "cleared": cleared(inbox, now_s),
        "history": history,
    }


def _plain(value: object) -> object:
    return msgspec.to_builtins(value) if value is not None else None


def _task(task: HeldTask, owner: Owner) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(task)
    return fields | {
        "final": task.phase.is_final,
        "alerts": [_alert(alert) for alert in task.alerts],
        "stopping": task.directory in owner.stopped_tasks and not task.phase.is_final,
    }


def alerts(inbox: Inbox, now_s: float) -> list[dict[str, Any]]:
    """What the owner should look at; a process that is silent is one of them."""
    states = topic_states(inbox, now_s)
    silent = [t for t, state in states.items() if state == "stale" and t != "gpu.load"]
    mute = _silent_monitors(inbox, now_s)
    found = [_said(f"no word from {TOPICS[t].owner} ({t})") for t in sorted(silent)]
    tasks, processes = inbox.fresh(TaskState, now_s), inbox.fresh(ProcessState, now_s)
    if link := inbox.fresh(LinkState, now_s):
        found += [_said(warning) for warning in link.warnings]
    if tasks and not tasks.engine.available:
        found.append(_said(f"Docker is away: {tasks.engine.detail or 'no reason given'}"))
    if tasks and tasks.capacity.disk_full:
        found.append(_said("the disk is full: no new task is taken"))
    if processes:
        found += [_said(f"{name} restarts too often") for name in processes.alerts]
    found += [_said(f"no word from {name}: its GPUs are given to no task") for name in mute]
    hosts, gpus = inbox.all_fresh(HostLoad, now_s), inbox.all_fresh(GpuLoad, now_s)
    found += [_alert(alert) for load in hosts.values() for alert in load.alerts]
    found += [_alert(alert) for alert in (tasks.alerts if tasks else ())]
    return found + [_gpu_alert(load, alert) for load in gpus.values() for alert in load.alerts]


def cleared(inbox: Inbox, now_s: float) -> list[dict[str, Any]]:
    """The alerts that are over, the last first."""
    hosts, gpus = inbox.all_fresh(HostLoad, now_s), inbox.all_fresh(GpuLoad, now_s)
    over = [alert for load in hosts.values() for alert in load.cleared]
    over += [alert for load in gpus.values() for alert in load.cleared]
    tasks = inbox.fresh(TaskState, now_s)
    over += tasks.cleared if tasks else ()
    over.sort(key=lambda alert: alert.cleared_unix_s or 0.0, reverse=True)
    return [_alert(alert) | {"cleared_unix_s": alert.cleared_unix_s} for alert in over]


def _silent_monitors(inbox: Inbox, now_s: float) -> list[str]:
    """Of GPUs: each set has its own."""
    newest = inbox.latest.get("gpu.load", {})
    limit_s = TOPICS["gpu.load"].stale_after_s
    return sorted(name for name, load in newest.items() if now_s - load.at_s >= limit_s)


def _said(text: str) -> dict[str, Any]:
    return {"text": text, "raised_unix_s": None}


def _alert(alert: Alert) -> dict[str, Any]:
    text = f"{alert.rule} {alert.subject}: {alert.value:g} (threshold {alert.threshold:g})"
    return {"text": text, "raised_unix_s": alert.raised_unix_s}


def _gpu_alert(load: GpuLoad, alert: Alert) -> dict[str, Any]:
    reason = load.reason_of(alert)
    if not reason:
        return _alert(alert)
    return {"text": f"{alert.subject}: {reason}", "raised_unix_s": alert.raised_unix_s}


def has_output(task: HeldTask) -> bool:
    """Whether there may be a log to show."""
    return task.phase not in (TaskPhase.ACCEPTED, TaskPhase.PREPARING)


# ------------------------------------------------------------------ what a task wrote

ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC and strings: titles, links
    r"|\x1b[ -/]*[0-~]"
)
LINE_END = re.compile(r"\r\n?")
INVISIBLE = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C)  # direction
PICTURES = {
    **{n: 0x2400 + n for n in range(32) if n not in (9, 10)},
    0x7F: 0x2421,
    **dict.fromkeys((*range(128, 160), *INVISIBLE), 65533),
}


def harmless(text: str) -> str:
    """Terminal sequences dropped, line ends unified, other control characters made visible."""
    return LINE_END.sub("\n", ESCAPE.sub("", text)).translate(PICTURES)


class LogText:
    """Bytes of a log to harmless text; a character may be cut between two records."""

    def __init__(self) -> None:
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def of(self, stream: int, data: bytes) -> str:
        if stream not in self._decoders:
            self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        return harmless(self._decoders[stream].decode(data))


class LogTail:
    """The last part of a log, for any number of readers that each know how far they are.

    A reader's position counts parts; parts that were dropped before it came are skipped.
    """

    def __init__(self, most_characters: int) -> None:
        self._most = most_characters
        self._parts: deque[tuple[int, str]] = deque()
        self._held = 0
        self.position = 0

    def add(self, stream: int, text: str) -> None:
        if not text:
            return
        self._parts.append((stream, text))
        self.position += 1
        self._held += len(text)
        while self._held > self._most and len(self._parts) > 1:
            self._held -= len(self._parts.popleft()[1])

    def since(self, position: int) -> list[tuple[int, str]]:
        """The parts from `position` on, neighbours of one stream joined."""
        first = max(0, len(self._parts) - (self.position - position))
        joined: list[tuple[int, str]] = []
        for stream, text in list(self._parts)[first:]:
            if joined and joined[-1][0] == stream:
                text = joined.pop()[1] + text
            joined.append((stream, text))
        return joined
