"""How a process begins, beats and ends. Every process of the worker goes through here.

The first steps, in this order: settings, (imports are done), the home's folders, privileges
dropped, death with the parent, the lock, the bus bound and a first unsynced beat; only then
what the process is for. Beats fall on whole seconds of the monotonic clock, so that all
processes wake once together. The one broad `except` of the program is here.
"""

import ctypes
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Protocol

from shared.bus import Bus, BusError, PathTooLongError, settle_s
from shared.messages import MESSAGES
from shared.settings import EXIT_BAD_SETTINGS, Settings, SettingsError, find_home, load
from shared.topics import owned_by

PERIOD_S = 1.0
CHATTY_LIBRARIES = ("docker", "urllib3", "asyncio")  # at DEBUG they would drown our own words
LOG_BYTES, LOG_FILES = 10 * 2**20, 5
FAILURES_WINDOW_S = 60.0  # failures within this time make the next life begin later …
LONGEST_PACE_S = 8.0  # … but sooner than the watchdog calls it a hang (15 s)
PUBLIC_FOLDERS = {"run": 0o755, "run/bus": 0o3770, "log": 0o750, "lib": 0o750, "tasks": 0o750}

PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "NET_ADMIN": 12}
LINUX_CAPABILITY_VERSION_3 = 0x20080522


class Worker(Protocol):
    """What a threaded process is: it beats each second, and wakes when something came."""

    def beat(self, now_s: float) -> None:
        """Once a second, on the whole second; publishes this process's STATEs."""

    def wake(self, ready: set[int], now_s: float) -> None:
        """News on the bus or a readable descriptor of `descriptors()`; must not block."""

    def descriptors(self) -> Iterable[int]:
        """What else wakes the loop."""

    def close(self) -> None:
        """The process ends in order."""


@dataclass(frozen=True)
class Context:
    """What a process has after its first steps."""

    name: str
    settings: Settings
    bus: Bus
    stop: threading.Event
    log: logging.Logger
    stop_descriptor: int = -1  # readable as soon as a signal came: ends the poll of `_loop`

    @property
    def home(self) -> Path:
        return self.settings.home


def run(
    name: str,
    capabilities: frozenset[str],
    reads: Iterable[str],
    make: Callable[[Context], Worker],
) -> int:
    """A threaded process from its first step to its exit code."""
    return begin(name, capabilities, reads, lambda context: _loop(context, make(context)))


def begin(
    name: str,
    capabilities: frozenset[str],
    reads: Iterable[str],
    serve: Callable[[Context], None],
) -> int:
    """The first steps, then `serve(context)` until it returns; the process's exit code."""
    try:
        home = find_home(os.environ, Path.cwd())
        _make_home(home)
        _log_to(home, name)  # before the settings: a wrong one is said there too
        settings = load(os.environ, Path.cwd())
        logging.getLogger().setLevel(settings.log_level)
    except (SettingsError, OSError) as err:
        return _refuse(name, err)
    log = logging.getLogger(name)
    try:
        leave_no_core()
        drop_privileges(capabilities)
        gain_none()
        die_with_supervisord()
        os.umask(0o007)
        _pace(settings.home, name)
        bus = Bus(settings.home, name, reads)
    except PathTooLongError as err:
        return _refuse(name, SettingsError(f"HIVEMIND_HOME={settings.home}: {err}"))
    except (BusError, PermissionError) as err:
        return _refuse(name, err)
    try:
        _first_beat(bus)
        stop, stop_descriptor = _stop_on_signals()
        serve(Context(name, settings, bus, stop, log, stop_descriptor))
    except SettingsError as err:  # found late, as by what a database holds: stay down
        return _refuse(name, err)
    except Exception:  # the one place: say why, end, and supervisord starts us again
        log.exception("%s ends", name)
        _note_failure(settings.home, name)
        return 1
    finally:
        bus.close()
    return 0


def _refuse(name: str, err: Exception) -> int:
    line = f"{name}: {err}"
    if logging.getLogger().handlers:  # a home that can't be used has no log
        logging.getLogger(name).critical("%s", err)
    print(line, file=sys.stderr)
    return EXIT_BAD_SETTINGS if isinstance(err, SettingsError) else 1


def _first_beat(bus: Bus) -> None:
    for topic in owned_by(bus.name):
        bus.publish(MESSAGES[topic](at_s=time.monotonic(), synced=False))


def next_beat_in_s(now_s: float) -> float:
    """Seconds to the next whole second of the monotonic clock."""
    return PERIOD_S - now_s % PERIOD_S


def _loop(context: Context, worker: Worker) -> None:
    bus = context.bus
    due_s = time.monotonic()
    try:
        while not context.stop.is_set():
            now_s = time.monotonic()
            if now_s >= due_s:
                bus.connect_new()
                worker.beat(now_s)
                due_s = time.monotonic() + next_beat_in_s(time.monotonic())
                time.sleep(settle_s(time.monotonic()))  # the others' beats, in the same wake
            descriptors = (context.stop_descriptor, *worker.descriptors())
            ready = bus.wait(max(0.0, due_s - time.monotonic()), descriptors)
            if not context.stop.is_set():
                worker.wake(ready, time.monotonic())
    finally:
        worker.close()


def _stop_on_signals() -> tuple[threading.Event, int]:
    """What SIGTERM and SIGINT set, and the pipe that ends the poll the loop sleeps in.

    A handler alone would not end it: Python takes up an interrupted poll again.
    """
    stop = threading.Event()
    wakes, woken_by = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.set_wakeup_fd(woken_by, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop, wakes


# ------------------------------------------------------------------ the home and the log


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o755)
        for folder, mode in PUBLIC_FOLDERS.items():
            path = home / folder
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                path.chmod(mode)
    except OSError as err:
        raise SettingsError(f"HIVEMIND_HOME={home} can't be used: {err}") from err
    if not os.access(home / "run" / "bus", os.W_OK):
        raise SettingsError(f"HIVEMIND_HOME={home} belongs to another user: run as that user")


class _LogFile(RotatingFileHandler):
    """Asks only the open file for its size: the library's own looks twice at the name and makes
    the line twice, for each line."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        return self.stream is not None and self.stream.tell() >= self.maxBytes


def _log_to(home: Path, name: str) -> None:
    handler = _LogFile(
        home / "log" / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        handlers=[handler],
    )
    for library in CHATTY_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)


# ------------------------------------------------------------------ privileges and death


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop_privileges(keep: frozenset[str]) -> None:
    """As root: cut the bounding, permitted and effective sets to `keep`. Else: nothing to do."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    kept = {CAPABILITIES[name] for name in keep}
    number = 0
    while (held := libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if held and number not in kept:
            _check(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "drop a capability")
        number += 1
    header = _Header(LINUX_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    _check(libc.capget(ctypes.byref(header), ctypes.byref(data)), "read the capabilities")
    mask = sum(1 << bit for bit in kept)
    data[0].effective = data[0].permitted = data[0].permitted & mask
    data[1].effective = data[1].permitted = 0
    data[0].inheritable = data[1].inheritable = 0
    _check(libc.capset(ctypes.byref(header), ctypes.byref(data)), "set the capabilities")


def leave_no_core() -> None:
    """It would hold the secrets of tasks. 1, not 0: for the kernel that means not into the pipe
    of a core_pattern either."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if most == resource.RLIM_INFINITY or most > 0 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def gain_none() -> None:
    """No program that it runs gives it more than it has: set-user-id bits count for nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forgo new privileges")


def die_with_supervisord() -> None:
    """SIGKILL when supervisord dies; end now if it is dead already.

    After the privileges are dropped (that would clear it); the parent is looked at after the
    prctl, so that one which died in between is seen.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "ask to die with the parent")
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        parent = b""
    if b"supervisord" not in parent:
        raise PermissionError("not started by supervisord; use: supervisord -c supervisor.conf")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise PermissionError(number, f"could not {what}: {os.strerror(number)}")


# ------------------------------------------------------------------ pacing


def _failures(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.failures"


def _note_failure(home: Path, name: str) -> None:
    with _failures(home, name).open("a") as file:
        file.write(f"{time.time():.1f}\n")


def _pace(home: Path, name: str) -> None:
    """Begin later after failures of our own; a process that was killed comes back at once."""
    path = _failures(home, name)
    try:
        times = [float(line) for line in path.read_text().split()]
    except (OSError, ValueError):
        return
    recent = sum(1 for at in times if 0 <= time.time() - at < FAILURES_WINDOW_S)
    if recent == 0:
        path.unlink(missing_ok=True)
    elif recent > 1:
        time.sleep(pace_s(recent, random.random()))


def pace_s(recent_failures: int, uniform: float) -> float:
    """Seconds to wait before a life after so many failures in a minute; `uniform` in [0, 1)."""
    if recent_failures < 2:
        return 0.0
    return float(min(LONGEST_PACE_S, 2.0 ** (recent_failures - 2)) * (0.75 + uniform / 4))
