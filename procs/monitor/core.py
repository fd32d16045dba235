"""What the monitor decides: what its rules look at, what the kernel's counters mean, what of the
network counts. Thresholds themselves are shared/thresholds.py's.

Pure: no clock, no psutil, no sockets.
"""

from collections.abc import Collection, Iterable, Mapping

from shared.messages import HostLoad
from shared.settings import Settings
from shared.thresholds import Rule


def rules(settings: Settings) -> tuple[Rule, ...]:
    """Of the machine; each has its reading below."""
    return (
        Rule("cpu", *settings.alert_cpu),
        Rule("memory", *settings.alert_memory),
        Rule("swap", *settings.alert_swap),
        Rule("disk", *settings.alert_disk),
        Rule("temperature", *settings.alert_temperature),
        Rule("cpu_pressure", *settings.alert_cpu_pressure),
        Rule("memory_pressure", *settings.alert_memory_pressure),
        Rule("io_pressure", *settings.alert_io_pressure),
    )


def readings(load: HostLoad) -> dict[str, float]:
    """The figure that each rule looks at; what is not known is not in it."""
    used_bytes = load.disk_total_bytes - load.disk_free_bytes
    figures = {
        "cpu": load.cpu_pct,
        "memory": load.memory_pct,
        "swap": load.swap_pct,
        "disk": 100.0 * used_bytes / load.disk_total_bytes if load.disk_total_bytes else None,
        "temperature": load.temperature_c,
        "cpu_pressure": load.pressure_cpu_pct,
        "memory_pressure": load.pressure_memory_pct,
        "io_pressure": load.pressure_io_pct,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


# ------------------------------------------------------------------ CPU

Ticks = Mapping[int, tuple[int, int]]  # a core's number → busy and in all, since the boot
IDLE, IOWAIT, GUEST = 3, 4, 8  # columns of /proc/stat; what guests had is in `user` already


def parse_cpus(text: str) -> Ticks:
    """`cpu0 user nice system idle iowait irq softirq steal guest guest_nice`; a core that is
    switched off has no line."""
    found = {}
    for line in text.splitlines()[1:]:  # the first is of all together
        name, *words = line.split()
        if not name.startswith("cpu"):
            break
        ticks = [int(word) for word in words[:GUEST]]
        found[int(name.removeprefix("cpu"))] = sum(ticks) - ticks[IDLE] - ticks[IOWAIT], sum(ticks)
    return found


def _pct(part: float, whole: float) -> float:
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0


class CpuUse:
    """Of each core and all together, between two readings of the kernel's counters."""

    def __init__(self, ticks: Ticks) -> None:
        self.all_pct = 0.0
        self.cores_pct: tuple[int, ...] = ()
        self._last = ticks
        self._part: tuple[float, float] | None = None

    def add(self, ticks: Ticks) -> None:
        """A core that was switched on or off meanwhile does not count this once."""
        both = [number for number in sorted(ticks) if number in self._last]
        busy = [ticks[n][0] - self._last[n][0] for n in both]
        whole = [ticks[n][1] - self._last[n][1] for n in both]
        self.all_pct = _pct(sum(busy), sum(whole))
        self.cores_pct = tuple(round(_pct(*pair)) for pair in zip(busy, whole, strict=True))
        self._last = ticks

    def part_pct(self, used_s: float | None, now_s: float) -> float | None:
        """Of all cores, what those had of whom the seconds are that they used so far."""
        before, self._part = self._part, None if used_s is None else (used_s, now_s)
        if before is None or self._part is None:
            return None if used_s is None else 0.0
        return _pct(self._part[0] - before[0], (now_s - before[1]) * max(len(self._last), 1))


def parse_pressure(text: str) -> float | None:
    """`some avg10=1.50 avg60=…` → 1.5"""
    for line in text.splitlines():
        kind, _, figures = line.partition(" ")
        if kind == "some" and figures.startswith("avg10="):
            return float(figures.split()[0].removeprefix("avg10="))
    return None


# ------------------------------------------------------------------ the network

INSIDE = ("veth", "br-", "docker", "virbr", "hm-", "wg", "tun")  # carried by another card, or never
# leaving the machine: counting them would count a byte twice


def counted(names: Iterable[str], real: Collection[str]) -> list[str]:
    """The cards that the machine's traffic is counted at: those of hardware, where it has any; a
    bond, a bridge or a VLAN is carried by them. In a container there is none."""
    cards = [name for name in names if name != "lo"]
    return [name for name in cards if (name in real if real else not name.startswith(INSIDE))]


class NetworkTotal:
    """Bytes received and sent by the machine's own cards; only grows, also when a card goes."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0
        self._last: dict[str, tuple[int, int]] = {}

    def add(self, cards: Mapping[str, tuple[int, int]]) -> None:
        """Take the kernel's counters; one that fell began again from zero."""
        for name, (received, sent) in cards.items():
            before_received, before_sent = self._last.get(name, (0, 0))
            if received < before_received or sent < before_sent:
                before_received = before_sent = 0
            self.received_bytes += received - before_received
            self.sent_bytes += sent - before_sent
            self._last[name] = (received, sent)
