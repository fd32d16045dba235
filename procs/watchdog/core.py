"""What the watchdog decides: who is silent, what counts as a restart, what is an alert.

Pure: no clock, no sockets, no supervisor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from shared.messages import ProcessInfo

SILENT_TICKS = 15  # a process whose beat stops for so many of our ticks (1 s each) is killed
LATE_TICK_S = 2.5  # we slept ourselves, with the machine or without: nobody's silence counts
SHORT_LIFE_S = 1.0  # one that died sooner waits for supervisord's own second: no spinning
ALERT_RESTARTS, ALERT_WINDOW_S = 5, 600.0  # more restarts than this in this time are an alert
EXIT_BAD_SETTINGS = 2  # supervisor.conf: such a program stays down


@dataclass(frozen=True)
class Program:
    """What supervisord says of one program. `pid` is 0 when there is no process."""

    name: str
    group: str
    state: str
    pid: int = 0
    start_unix_s: float = 0.0
    stop_unix_s: float = 0.0
    exit_status: int = 0
    spawn_error: str = ""

    @property
    def full_name(self) -> str:
        """As supervisord wants it in a call."""
        return f"{self.group}:{self.name}"


# ------------------------------------------------------------------ silence


@dataclass
class _Heard:
    pid: int
    at_s: float
    silent_ticks: int = 0


class Silence:
    """Counts, in the watchdog's own ticks, how long each process has said nothing new."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._last_tick_s: float | None = None

    def tick(
        self, now_s: float, beats: Mapping[str, float], pids: Mapping[str, int]
    ) -> tuple[str, ...]:
        """The names to kill. `beats`: newest `at_s` by name; `pids`: who should beat now."""
        late = self._last_tick_s is not None and now_s - self._last_tick_s > LATE_TICK_S
        self._last_tick_s = now_s
        for name in [name for name in self._heard if name not in pids]:
            del self._heard[name]
        for name, pid in pids.items():
            self._count(name, pid, beats.get(name, 0.0), late)
        return tuple(n for n, heard in self._heard.items() if heard.silent_ticks >= SILENT_TICKS)

    def _count(self, name: str, pid: int, at_s: float, late: bool) -> None:
        heard = self._heard.get(name)
        if heard is None or heard.pid != pid:
            self._heard[name] = _Heard(pid, at_s)
        elif late or at_s > heard.at_s:
            heard.at_s, heard.silent_ticks = max(at_s, heard.at_s), 0
        else:
            heard.silent_ticks += 1

    def forgive(self, name: str) -> None:
        """Begin to count anew: it has been killed."""
        self._heard.pop(name, None)


# ------------------------------------------------------------------ restarts


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one program. Times of restarts are the monotonic clock's."""

    pid: int = 0
    restarts: int = 0
    since_unix_s: float = 0.0
    restarted_at_s: tuple[float, ...] = ()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`lib/process.json`. `supervisord` names the one whose processes these are."""

    supervisord: str = ""
    programs: dict[str, Life] = {}


def next_record(
    record: Record, programs: Iterable[Program], supervisord: str, now_s: float
) -> Record:
    """The record after a look. Another supervisord starts everything: that is no restart."""
    same = record.supervisord == supervisord
    lives = {
        program.name: _next_life(record.programs.get(program.name, Life()), program, same, now_s)
        for program in programs
    }
    return Record(supervisord=supervisord, programs=lives)


def _next_life(life: Life, program: Program, same: bool, now_s: float) -> Life:
    recent = tuple(at for at in life.restarted_at_s if same and now_s - at < ALERT_WINDOW_S)
    restarts = life.restarts
    if program.pid and life.pid and program.pid != life.pid and same:
        restarts += 1
        recent = (*recent, now_s)
    return Life(
        pid=program.pid or life.pid,
        restarts=restarts,
        since_unix_s=program.start_unix_s if program.pid else program.stop_unix_s,
        restarted_at_s=recent,
    )


def too_often(record: Record, now_s: float) -> tuple[str, ...]:
    """The programs that restart too often."""
    return tuple(
        name
        for name, life in sorted(record.programs.items())
        if sum(now_s - at < ALERT_WINDOW_S for at in life.restarted_at_s) > ALERT_RESTARTS
    )


def process_info(program: Program, life: Life) -> ProcessInfo:
    return ProcessInfo(
        name=program.name,
        state=program.state,
        pid=program.pid,
        restarts=life.restarts,
        since_unix_s=life.since_unix_s,
        detail=_detail(program),
    )


def _detail(program: Program) -> str:
    if program.pid:
        return ""
    if program.state == "EXITED" and program.exit_status == EXIT_BAD_SETTINGS:
        return "wrong settings: see its log"
    if program.spawn_error:
        return program.spawn_error
    return f"exit status {program.exit_status}" if program.state == "EXITED" else ""
