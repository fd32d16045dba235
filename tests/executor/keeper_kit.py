"""Runs the real keeper as PID 1 of a namespace of its own, as the task's user without any right:
a container in all that matters to it, without an engine. Needs root."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from procs.executor.claim import Start, write_claim
from procs.executor.run_record import RunRecord, parse_run
from shared.tasklog import LogReader, LogRecord

UID = GID = 65534
WAIT_S = 60.0
MIB = 2**20
NAMESPACE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
MOUNTS = """
mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/claim && mkdir -m 1777 /mnt/tmp &&
: >/mnt/keeper && : >/mnt/hostile && mount --bind "$1" /mnt/claim &&
mount --bind "$2" /mnt/keeper && mount --bind "$3" /mnt/hostile && cd / && shift 3 && exec "$@"
"""  # as the container has it: the task's user reaches nothing else of the task's directory
POWERLESS = (
    "setpriv",
    f"--reuid={UID}",
    f"--regid={GID}",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--pdeathsig=KILL",  # a change of user clears unshare's own
)
KEEPER = ("/mnt/keeper", "/mnt/claim")
HOSTILE, CLAIM, TMP = "/mnt/hostile", "/mnt/claim", "/mnt/tmp"  # as the command sees them
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Attempt:
    """A task's directory with a claim, and the keeper that runs it."""

    keeper: Path
    hostile: Path
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def claim(
        self,
        argv: Sequence[str | bytes],
        environment: Mapping[str, str] | None = None,
        log_limit_bytes: int = 64 * MIB,
        file_limit_bytes: int = 64 * MIB,
    ) -> None:
        env = {"PATH": PATH} if environment is None else environment
        write_claim(
            self.directory, Start(tuple(argv), env, log_limit_bytes, file_limit_bytes), UID, GID
        )

    def start(self, *before: str) -> subprocess.Popen[bytes]:
        """A keeper on the claim; `before`: commands that run it, as prlimit."""
        return self.start_as(*POWERLESS, *before, *KEEPER)

    def start_as(self, *words: str) -> subprocess.Popen[bytes]:
        """PID 1 of a namespace with the claim's mounts."""
        paths = [str(self.directory / "claim"), str(self.keeper), str(self.hostile)]
        command = [*NAMESPACE, "sh", "-c", MOUNTS, "sh", *paths, *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def run(self, *before: str) -> int:
        """Start a keeper and wait for its end; its exit code."""
        process = self.start(*before)
        process.communicate(timeout=WAIT_S)
        return process.returncode

    def keeper_pid(self, process: subprocess.Popen[bytes]) -> int:
        """unshare's only child, which has become the keeper once it has claimed."""
        wait_until(lambda: self.record.started is not None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return int(children.read_text().split()[0])

    def wait_for_output(self, text: bytes) -> None:
        wait_until(lambda: text in self.output())

    @property
    def record(self) -> RunRecord:
        return parse_run((self.directory / "run").read_bytes())

    @property
    def log(self) -> list[LogRecord]:
        return read_all(self.directory / "log")

    def output(self, stream: int = 1) -> bytes:
        return b"".join(record.data for record in self.log if record.stream == stream)

    def forget(self) -> None:
        """As if it had not run: the next round."""
        for name in ("run", "log"):
            (self.directory / name).write_bytes(b"")

    def close(self) -> None:
        for process in self.processes:
            process.kill()  # the keeper dies with it, and its namespace
            process.communicate()
        self.processes.clear()


def read_all(path: Path, sequence: int = 0) -> list[LogRecord]:
    reader = LogReader(path, sequence)
    records: list[LogRecord] = []
    while more := reader.read():
        records += more
    reader.close()
    return records


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not come true")
        time.sleep(0.002)
