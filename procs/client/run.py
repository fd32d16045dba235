"""`hivemind run`: submits, follows, fetches. The task's bytes pass through untouched."""

import base64
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from procs.client import inputs, output, tables
from procs.client.api import Away, Master, MasterError

INTERRUPTED = 130


def note(text: str) -> None:
    print(f"hivemind: {text}", file=sys.stderr, flush=True)


def submit(master: Master, body: dict[str, Any], paths: list[Path]) -> str:
    """Send the inputs that the master has not, then the task; returns its id."""
    with ExitStack() as stack:
        gathered = inputs.gather(paths, stack)
        for one in gathered:
            if not master.has_input(one.sha256):
                _send(master, one)
        body = body | {
            "task_id": f"task-{secrets.token_hex(8)}",
            "inputs": [
                {
                    "path": one.path,
                    "sha256": one.sha256,
                    "size_bytes": one.size_bytes,
                    "unpack": one.unpack,
                }
                for one in gathered
            ],
        }
    return str(master.post("/api/v1/tasks", body)["task_id"])


def follow(master: Master, task_id: str) -> dict[str, Any]:
    """Pass the log on until the task has ended; returns the task."""
    shown = ""
    task: dict[str, Any] = {"state": "waiting", "detail": ""}
    for line in master.follow(task_id):
        if line is not None and "data" in line:
            write_record(line)
            continue
        if line is not None:
            task = line["task"]
            if task["ended"]:
                return task
        # What it waits for is told once nothing has happened for a while: most wait for no time.
        if (task["state"] == "waiting") == (line is None):
            shown = _show_progress(task, shown)
    raise AssertionError("a followed log ends with its task")


def write_record(record: dict[str, Any]) -> None:
    """stdout to stdout; stderr, and what the worker has to say, to stderr."""
    stream = sys.stdout.buffer if record["stream"] == "stdout" else sys.stderr.buffer
    stream.write(base64.b64decode(record["data"]))
    stream.flush()


def fetch(master: Master, task: dict[str, Any], directory: Path) -> None:
    """Put the task's output into `directory`."""
    made = task["output"]
    if made is None:
        return
    # In the directory itself: it is the one place that is known to have room for it.
    with (
        tempfile.TemporaryFile(dir=directory) as archive,
        tables.bar("output", made["size_bytes"]) as bar,
    ):
        chunks = bar.counted(master.output(task["task_id"]))
        output.download(chunks, made["sha256"], archive)
        output.extract(archive, directory)


@contextmanager
def cancelling(master: Master, task_id: str) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM cancels the task and goes on to its end, the second leaves."""
    pressed = threading.Event()

    def ask() -> None:
        own = Master(master.url)  # a session is for one thread
        own.patient = True
        try:
            own.post(f"/api/v1/tasks/{task_id}/cancel")
        except MasterError as err:
            note(str(err))
        finally:
            own.close()

    def interrupted(_: int, __: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        threading.Thread(target=ask, daemon=True).start()

    before = [(n, signal.signal(n, interrupted)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def retried(fetch_once: Callable[[], None]) -> None:
    """Once more where the master went away in the middle."""
    try:
        fetch_once()
    except Away:
        fetch_once()


def _send(master: Master, one: inputs.Input) -> None:
    with tables.bar(one.path, one.size_bytes) as bar:
        master.put_input(one.sha256, bar.counted(iter(lambda: one.content.read(2**18), b"")))


def _show_progress(task: dict[str, Any], shown: str) -> str:
    """Say what it waits for; on a terminal, also how it goes on."""
    line = f"{task['state'].replace('_', ' ')}: {task['detail']}".removesuffix(": ")
    if line != shown and (task["state"] == "waiting" or sys.stderr.isatty()):
        note(line)
    return line
