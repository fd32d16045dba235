"""A thief looks for the secrets of tasks: in every file of the worker, on its bus, in the engine,
on its pages, in its processes; while tasks run and after they have ended, in every way."""

import base64
import hashlib
import http.client
import json
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.bus import Tap
from tests.system.engine.private import PrivateEngine
from tests.system.whole import Master, Worker, docker_api, until, whole

pytestmark = [pytest.mark.docker, pytest.mark.system]

MARK = f"Xq7{uuid.uuid4().hex[:9]}"  # in a secret that is awkward to print; in no file of git's
SECRET = f"a'\"\\ \n%s{{}}$HOME☃{MARK}\t<b>"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
HAS_IT = (
    "import hashlib, os, sys;"
    " assert hashlib.sha256(os.environb[b'THE_KEY']).hexdigest() == sys.argv[1]"
)
NONE = "unspecified"
PAGES = ("/", "/monitor.html", "/history", "/history?state=failed", "/healthz", "/metrics")


def traces(text: str) -> list[bytes]:
    """How it could lie somewhere: as it is, in hexadecimal, in base64 at any offset, reversed."""
    raw = text.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode(), raw[::-1], raw.lower()]
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + raw)
        found.append(coded[4 : -4 - len(raw) % 3])
    return found


TRACES = traces(MARK)
assert min(map(len, TRACES)) >= 8


def holds(content: bytes) -> bool:
    return any(trace in content for trace in TRACES)


@dataclass
class Bus:
    """Everything that passes, in a thread of its own."""

    home: Path
    passed: list[bytes] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with closing(Tap(self.home)) as tap:
            while not self.end.is_set():
                if heard := tap.next(0.1):
                    self.passed.append(msgspec.json.encode(heard[1]))

    def close(self) -> None:
        self.end.set()
        self._thread.join()


def in_files(*folders: Path) -> list[str]:
    """Each file that has it, of any kind, by its path."""
    found = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place) / name for name in names):
                if path.is_file() and not path.is_symlink() and holds(path.read_bytes()):
                    found.append(str(path))
    return found


def in_processes(worker: Worker) -> list[str]:
    return [
        f"{name}: {what}"
        for name, pid in {"supervisord": worker.pid, **worker.pids()}.items()
        for what in ("environ", "cmdline")
        if holds(Path(f"/proc/{pid}/{what}").read_bytes())
    ]


def in_engine(engine: PrivateEngine, worker: Worker) -> list[str]:
    with docker_api(engine.host) as api:
        inspected = {one: api.inspect_container(one) for one in worker.container_ids(engine.host)}
    return [one for one, found in inspected.items() if holds(json.dumps(found).encode())]


def in_events(engine: PrivateEngine, since_unix_s: float, until_unix_s: float) -> int:
    """The events of the engine in between, and whether one has it."""
    with docker_api(engine.host) as api:
        since, until_s = int(since_unix_s), int(until_unix_s) + 1
        seen = list(api.events(since=since, until=until_s, decode=True))
    assert not holds(json.dumps(seen).encode())
    return sum(event["Action"] == "create" for event in seen)


def on_pages(worker: Worker) -> list[str]:
    return [path for path in PAGES if holds(page(worker, path))] + [
        "/events" for event in events(worker) if holds(event)
    ]


def page(worker: Worker, path: str) -> bytes:
    port = int(worker.setting("WEB_LISTEN").rpartition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


def events(worker: Worker) -> Iterator[bytes]:
    """The first of them: all that the page shows."""
    port = int(worker.setting("WEB_LISTEN").rpartition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/events")
        answer = connection.getresponse()
        yield answer.readline() + answer.readline()


def submit(master: Master, *command: str, **more: Any) -> str:
    secrets = {"THE_KEY": SECRET, "OTHER": MARK}
    return master.submit(*command, secrets=secrets, **more)


def core_limits(worker: Worker) -> set[str]:
    lines = [
        line
        for pid in worker.pids().values()
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    ]
    return {word for line in lines for word in line.split()[4:6]}


def test_no_secret_is_found_anywhere(engine: PrivateEngine) -> None:
    settings = {"LOG_LEVEL": "DEBUG"}
    with whole(engine.host, engine.task_image, **settings) as (worker, master):
        began = time.time()
        bus = Bus(worker.home)
        try:
            tasks = ends_of_all_kinds(worker, master, engine)
            took = [(task["state"], task["cause"]) for task in map(master.ended, tasks)]
            until(lambda: worker.held() == [], "all is delivered, and cleaned")
        finally:
            bus.close()
        ended = time.time()
        assert took == [
            ("succeeded", NONE), ("failed", "exit"), ("failed", "start"), ("failed", "input"),
            ("cancelled", NONE), ("timed_out", NONE), ("succeeded", NONE), ("succeeded", NONE),
        ]  # fmt: skip
        assert len(bus.passed) > 20
        assert [one for one in bus.passed if holds(one)] == []
        assert in_events(engine, began, ended) >= 6
        assert in_files(worker.folder) == []
        assert (worker.home / "debug").is_dir()
        assert on_pages(worker) == []
        assert in_processes(worker) == []
        assert not holds((engine.folder / "dockerd.log").read_bytes())
        assert list(worker.folder.rglob("core*.[0-9]*")) == []


def ends_of_all_kinds(worker: Worker, master: Master, engine: PrivateEngine) -> list[str]:
    """One task of each; while some run, it is looked for."""
    wait = f"{HAS_IT}; open('/output/up', 'w').close(); import time; time.sleep(300)"
    broken = {
        "path": "x", "sha256": master.upload(b"no zip"), "size_bytes": 6, "unpack": True
    }  # fmt: skip
    stopped = submit(master, "python3", "-c", wait, DIGEST)
    killed = submit(master, "python3", "-c", wait.replace("300", "3"), DIGEST)
    tasks = [
        submit(master, "python3", "-c", HAS_IT, DIGEST),
        submit(master, "sh", "-c", "exit 3"),
        submit(master, "-c", "/no/such", image=bare_image(engine)),
        submit(master, "true", inputs=[broken]),
        stopped,
        submit(master, "sleep", "300", timeout_s=1),
        killed,
    ]
    for task_id in (stopped, killed):
        up = worker.home / "tasks" / f"{task_id}.1" / "output" / "up"
        until(up.exists, f"{task_id} runs")
    worker.kill_program("executor")
    worker.kill_program("master_link")
    tasks.append(submit(master, "python3", "-c", HAS_IT, DIGEST))
    until(lambda: gone(worker, stopped), "the file goes as soon as it runs")
    assert in_engine(engine, worker) == []
    assert in_processes(worker) == []
    assert on_pages(worker) == []
    folder = engine.folder / "data" / "containers"
    assert in_files(*(folder / one for one in worker.container_ids(engine.host))) == []
    until(lambda: core_limits(worker) <= {"0", "1"}, "no process may leave a core file")
    master.cancel(stopped)
    return tasks


def gone(worker: Worker, task_id: str) -> bool:
    directory = worker.home / "tasks" / f"{task_id}.1"
    return directory.exists() and in_files(directory) == []


def bare_image(engine: PrivateEngine) -> str:
    """An image whose entry point is not there."""
    with docker_api(engine.host) as api:
        made = api.create_container(engine.task_image, ["true"])
        try:
            api.commit(made["Id"], "hivemind-test-bare-entry", "1", conf={"Entrypoint": ["/none"]})
        finally:
            api.remove_container(made["Id"])
    return "hivemind-test-bare-entry:1"


@pytest.mark.parametrize(
    "leak",
    [
        f"key={MARK}!",
        base64.b64encode(f"x{SECRET}".encode()).decode(),
        base64.b64encode(f"xx{SECRET}".encode()).decode(),
        f"..{MARK.encode().hex()}..",
        urllib.parse.quote(SECRET),
    ],
    ids=["plain", "base64", "base64 one off", "hexadecimal", "in a URL"],
)
def test_the_thief_would_know_it(leak: str) -> None:
    assert holds(leak.encode())
    assert not holds(leak.encode()[::2])
