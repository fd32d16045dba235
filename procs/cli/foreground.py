"""The whole worker in the foreground: a supervisord of our own, and its logs on stderr.

supervisord dies with us (PR_SET_PDEATHSIG) and its processes die with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from procs.cli.core import render_supervisor, supervisor_socket
from shared.bus import MAX_SOCKET_PATH, BusError, bus_directory, take_lock
from shared.files import write_atomic
from shared.service import PR_SET_PDEATHSIG, PUBLIC_FOLDERS

ROOT = Path(__file__).parents[2]  # a checkout, or where the wheel was installed
LOOK_S = 0.25  # how often the logs are looked at
READ_BYTES = 2**20  # of one log at one look
DYING_S = 2.0  # the processes of a worker that was killed a moment ago are gone by then


class StartError(Exception):
    """The worker can't be started here."""


def prepare(home: Path) -> Path:
    """The home's folders and its supervisor.conf; StartError where there is a worker already."""
    socket = supervisor_socket(home)
    if len(f"{socket}.{os.getpid()}") > MAX_SOCKET_PATH:
        raise StartError(f"{socket} is too long for a unix socket; set HIVEMIND_HOME to a shorter")
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o755)
        for folder, mode in PUBLIC_FOLDERS.items():
            if not (home / folder).is_dir():
                (home / folder).mkdir()
                (home / folder).chmod(mode)
        os.close(take_lock(bus_directory(home) / "executor.lock", DYING_S))
        configuration = home / "run" / "supervisor.conf"
        write_atomic(configuration, render_supervisor(_template(), ROOT, home).encode())
    except OSError as err:
        raise StartError(f"HIVEMIND_HOME={home} can't be used: {err}") from err
    except BusError as err:
        raise StartError(f"a worker runs in {home} already: {err}") from err
    return configuration


def _template() -> str:
    beside = ROOT / "supervisor.conf"
    packaged = Path(__file__).parent / "supervisor.conf"
    return (beside if beside.exists() else packaged).read_text(encoding="utf-8")


class LogFollower:
    """Copies what is added to each `<name>.log`, whole lines only, through rotations."""

    def __init__(self, directory: Path, outputs: list[BinaryIO]) -> None:
        self._directory = directory
        self._outputs = outputs
        self._files: dict[str, BinaryIO] = {}
        for path in directory.glob("*.log"):
            self._files[path.name] = path.open("rb")
            self._files[path.name].seek(0, os.SEEK_END)

    def copy(self) -> None:
        for path in sorted(self._directory.glob("*.log")):
            file = self._files.get(path.name)
            if file is not None:
                self._copy_lines(file)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
                file.close()  # it was rotated: its end has just been read
            self._files[path.name] = path.open("rb")
            self._copy_lines(self._files[path.name])

    def _copy_lines(self, file: BinaryIO) -> None:
        begin = file.tell()
        if os.fstat(file.fileno()).st_size < begin:
            begin = file.seek(0)  # cut by its writer
        added = file.read(READ_BYTES)
        whole = added if len(added) == READ_BYTES else added[: added.rfind(b"\n") + 1]
        file.seek(begin + len(whole))
        for output in self._outputs:
            output.write(whole)
            output.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def run(configuration: Path, environment: Mapping[str, str], log_file: Path | None) -> int:
    """Until Ctrl-C, SIGTERM or supervisord's own end; the exit code."""
    home = configuration.parents[1]
    outputs: list[BinaryIO] = [sys.stderr.buffer]
    if log_file is not None:
        outputs.append(log_file.open("ab"))
    follower = LogFollower(home / "log", outputs)
    stops = _count_signals()
    supervisord = _start(configuration, environment)
    try:
        code = _follow(supervisord, follower, stops)
        follower.copy()
    finally:
        supervisord.kill()
        supervisord.wait()
        follower.close()
        for output in outputs[1:]:
            output.close()
    return 0 if stops.is_set() else code or 1


def _start(configuration: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def die_with_us() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the same as its log, which is followed
        env=dict(environment),
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C is ours to pass on
        preexec_fn=die_with_us,
    )


def _count_signals() -> threading.Event:
    stops = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stops.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stops


def _follow(
    supervisord: subprocess.Popen[bytes], follower: LogFollower, stops: threading.Event
) -> int:
    while supervisord.poll() is None:
        follower.copy()
        if stops.wait(LOOK_S):
            supervisord.terminate()
            break
    while True:
        follower.copy()
        try:
            return supervisord.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue
