"""Some processes of the worker under a real supervisord, in a short home of their own."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from shared.bus import Tap
from shared.messages import Message

ROOT = Path(__file__).parents[2]
LONGEST_S = 30.0

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def until(look: Callable[[], T | None], what: str, longest_s: float = LONGEST_S) -> T:
    """What `look` returns as soon as it is not None."""
    deadline_s = time.monotonic() + longest_s
    while time.monotonic() < deadline_s:
        found = look()
        if found is not None:
            return found
        select.select([], [], [], 0.01)
    raise AssertionError(f"not within {longest_s:.0f} s: {what}")


def configuration(programs: Iterable[str]) -> str:
    """supervisor.conf with these programs alone, run from this checkout."""
    sections = re.split(r"(?m)^(?=\[)", (ROOT / "supervisor.conf").read_text())
    wanted = {f"[program:{name}]" for name in programs} | {
        f"[eventlistener:{name}]" for name in programs
    }
    kept = [
        section
        for section in sections
        if not section.startswith(("[program", "[eventlistener", "[include"))
        or section.splitlines()[0] in wanted
    ]
    text = "".join(kept).replace("directory = %(here)s", f"directory = {ROOT}")
    return text.replace("%(here)s/procs", f"{ROOT}/procs")


def programs_of(supervisord: int) -> dict[str, int]:
    """Program → pid of a supervisord's children; one that is still its start script is left out."""
    found: dict[str, int] = {}
    children = Path(f"/proc/{supervisord}/task/{supervisord}/children")
    for pid in children.read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        module = next((word for word in words if word.startswith("procs.")), None)
        if module is not None:
            instance = words[words.index(module) + 1]
            name = module.removeprefix("procs.")
            found[f"{name}@{instance}" if instance else name] = int(pid)
    return found


class Supervised:
    """A supervisord that runs; `home` is its worker's home, and its own files lie there too."""

    def __init__(
        self, home: Path, launcher: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        self.home = home
        self.socket = home / ".supervisor.sock"
        self._tap = Tap(home)
        command = (*launcher, sys.executable, "-m", "supervisor.supervisord", "-n")
        self._daemon = subprocess.Popen(
            (*command, "-c", str(home / "supervisor.conf")),
            env={"PATH": os.environ["PATH"], "HIVEMIND_HOME": str(home), **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=home,
        )

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def pids(self) -> dict[str, int]:
        """Program → pid, as the kernel has it: what supervisord started and what became of it."""
        return programs_of(self.pid)

    def next(
        self, kind: type[M], where: Callable[[M], bool] = lambda _: True, synced: bool = True
    ) -> M:
        """The first message of this kind, published from now on, that is as `where` says."""
        began_s = time.monotonic()
        seen: M | None = None
        while time.monotonic() < began_s + LONGEST_S:
            heard = self._tap.next(0.1)
            if heard is not None and isinstance(heard[1], kind) and heard[1].synced is synced:
                seen = heard[1]
                if seen.at_s >= began_s and where(seen):
                    return seen
        raise AssertionError(f"no such {kind.__name__}; the last was {seen}; {self.logs()}")

    def back(self, name: str, old_pid: int) -> float:
        """Seconds until another process of `name` is there."""
        began_s = time.monotonic()

        def look() -> float | None:
            pid = self.pids().get(name, old_pid)
            return None if pid == old_pid else time.monotonic() - began_s

        return until(look, f"{name} is back; {self.logs()}")

    def logs(self) -> str:
        paths = sorted((self.home / "log").glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text()}" for path in paths)

    def stop(self) -> float:
        """End supervisord in order; the seconds that took."""
        began_s = time.monotonic()
        self._tap.close()
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait(LONGEST_S)
        return time.monotonic() - began_s


@contextmanager
def supervised(
    programs: Iterable[str],
    edit: Callable[[str], str] = str,
    launcher: tuple[str, ...] = (),
    prepare: Callable[[Path], None] = lambda home: None,
    **environment: str,
) -> Iterator[Supervised]:
    """`edit` changes supervisor.conf, `launcher` comes before supervisord's command, `prepare`
    is given the home before."""
    home = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    (home / "supervisor.conf").write_text(edit(configuration(programs)))
    prepare(home)
    worker = Supervised(home, launcher, environment)
    try:
        yield worker
    finally:
        if worker._daemon.poll() is None:
            worker.stop()
        shutil.rmtree(home)


def read_json(path: Path) -> dict[str, object]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
