"""A whole worker joins over TLS; what is secret about that is found nowhere but in its own file."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procs.client.api import Master as Api
from shared.messages import LinkPhase, LinkState
from tests.fakes.supervised import ROOT, Supervised, supervised, until
from tests.system.test_secrets import Bus, traces
from tests.system.whole import free_port, short_folder

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class TlsMaster:
    """`hivemind-master serve --tls` as a process, its output in a file."""

    data: Path
    log: Path
    api: Api

    @property
    def url(self) -> str:
        return self.api.url


@contextlib.contextmanager
def tls_master(folder: Path) -> Iterator[TlsMaster]:
    data, log = folder / "data", folder / "master.log"
    arguments = ("--tls", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(data))
    with log.open("wb") as file:
        process = subprocess.Popen(
            (sys.executable, "-m", "procs.master", "serve", *arguments),
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        ready = until(lambda: re.search(r"http=(https://\S+)", log.read_text()), "the master")
        admin = data / "identity" / "admin.token"
        with contextlib.closing(Api(ready[1], admin)) as api:
            yield TlsMaster(data, log, api)
    finally:
        process.terminate()
        process.wait()


def secrets_of(master: TlsMaster, worker: Supervised, token: str) -> dict[str, str]:
    """Each with the name of the only files that may have it."""
    lib, identity = worker.home / "lib", master.data / "identity"
    return {
        token.rpartition(".")[2]: "worker.conf",
        (identity / "admin.token").read_text().strip().rpartition(".")[2]: "admin.token",
        key_line(lib / "node.key"): "node.key",
        key_line(identity / "ca.pem"): "ca.pem",
        key_line(identity / "master.pem"): "master.pem",
    }


def key_line(path: Path) -> str:
    """A line of a private key that no other file has for other reasons."""
    return path.read_text().splitlines()[2][:40]


def found_in(folder: Path, secret: str) -> set[str]:
    marks = traces(secret)
    return {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and any(mark in path.read_bytes() for mark in marks)
    }


def status(worker: Supervised) -> dict[str, Any]:
    ran = subprocess.run(
        (sys.executable, "-m", "procs.cli", "status", "--json"),
        env={"HIVEMIND_HOME": str(worker.home)},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def page(port: int, path: str) -> bytes:
    """Of /events the first, which is all that the page shows."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as asked:
        asked.request("GET", path)
        answer = asked.getresponse()
        return answer.readline() + answer.readline() if path == "/events" else answer.read()


def write_settings(home: Path, url: str, token: str, page_port: int) -> None:
    conf = home / "worker.conf"
    conf.touch(0o600)
    conf.write_text(
        f"MASTER_NODE_URL={url}\nMASTER_JOIN_TOKEN={token}\nLOG_LEVEL=DEBUG\n"
        f"WEB_LISTEN=127.0.0.1:{page_port}\nTASK_LISTEN=127.0.0.1:0\n"
    )


def refused(worker: Supervised, page_port: int) -> None:
    """In the log, in status, on the page."""
    said = "the master does not take this node: this master does not know this join token"
    worker.next(LinkState, lambda s: s.phase is LinkPhase.WAITING and said in s.detail)
    until(lambda: said.encode() in page(page_port, "/events") or None, "the page says so")
    assert f"the link is down: {said}" in worker.logs()
    assert said in status(worker)["node"]["detail"]


def joined(worker: Supervised, master: TlsMaster, page_port: int) -> list[bytes]:
    """All that is shown of it."""
    state = worker.next(LinkState, lambda s: s.phase is LinkPhase.CONNECTED)
    assert state.trust_level == 2
    assert state.certificate_until_unix_s > 0
    (node,) = master.api.get("/api/v1/nodes")["nodes"]
    assert node["node_id"] == state.node_id
    pages = [page(page_port, path) for path in ("/monitor.html", "/events", "/metrics")]
    assert state.authority_digest.encode() in pages[1]
    told = status(worker)
    assert told["node"]["authority_digest"] == state.authority_digest
    return [*pages, json.dumps(told).encode(), json.dumps(node).encode()]


def test_a_whole_worker_is_refused_then_joins_and_no_secret_is_found_anywhere() -> None:
    with short_folder() as folder, tls_master(folder) as master:
        token = str(master.api.order("/api/v1/tokens", {"trust_level": 2})["token"])
        wrong, port = token[:-1] + ("a" if token[-1] != "a" else "b"), free_port()
        programs = ("master_link", "watchdog", "web", "monitor@host")
        with (
            supervised(
                programs, prepare=lambda home: write_settings(home, master.url, wrong, port)
            ) as worker,
            contextlib.closing(Bus(worker.home)) as bus,
        ):
            refused(worker, port)
            write_settings(worker.home, master.url, token, port)
            os.kill(worker.pids()["master_link"], signal.SIGKILL)
            shown = joined(worker, master, port)
            shown += [*bus.passed, master.log.read_bytes()]
            for pid in worker.pids().values():
                shown += [Path(f"/proc/{pid}/{w}").read_bytes() for w in ("environ", "cmdline")]
            for secret, only in secrets_of(master, worker, token).items():
                assert found_in(folder, secret) | found_in(worker.home, secret) == {only}
                for mark in traces(secret):
                    assert not any(mark in text for text in shown), only
            assert found_in(worker.home, wrong.rpartition(".")[2]) == set()
            assert len(bus.passed) > 10
            assert (worker.home / "lib" / "node.key").stat().st_mode & 0o777 == 0o600
            assert "registered as" in worker.logs()
        assert "is refused: this master does not know this join token" in master.log.read_text()
