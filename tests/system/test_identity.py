"""A whole worker joins over TLS; what is secret about that is found nowhere but in its own file."""

import contextlib
import http.client
import json
import re
import shutil
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


def test_what_proves_who_one_is_lies_in_its_own_file_alone(tmp_path: Path) -> None:
    with short_folder() as folder, tls_master(folder) as master:
        token = str(master.api.order("/api/v1/tokens", {"trust_level": 2})["token"])
        port = free_port()

        def settings(home: Path) -> None:
            conf = home / "worker.conf"
            conf.touch(0o600)
            conf.write_text(
                f"MASTER_NODE_URL={master.url}\nMASTER_JOIN_TOKEN={token}\nLOG_LEVEL=DEBUG\n"
                f"WEB_LISTEN=127.0.0.1:{port}\nTASK_LISTEN=127.0.0.1:0\n"
            )

        programs = ("master_link", "watchdog", "web", "monitor@host")
        with supervised(programs, prepare=settings) as worker:
            with contextlib.closing(Bus(worker.home)) as bus:
                state = worker.next(LinkState, lambda s: s.phase is LinkPhase.CONNECTED)
                assert state.trust_level == 2
                assert state.certificate_until_unix_s > 0
                (node,) = master.api.get("/api/v1/nodes")["nodes"]
                assert node["node_id"] == state.node_id
                pages = [page(port, path) for path in ("/monitor.html", "/events", "/metrics")]
                assert state.authority_digest.encode() in pages[1]
                told = status(worker)
                assert told["node"]["authority_digest"] == state.authority_digest
                shown = [json.dumps(master.api.get("/api/v1/nodes")).encode()]
            shown.append(json.dumps(told).encode())
            said = [*bus.passed, *pages, *shown, master.log.read_bytes()]
            environments = [
                Path(f"/proc/{pid}/{what}").read_bytes()
                for pid in worker.pids().values()
                for what in ("environ", "cmdline")
            ]
            for secret, only in secrets_of(master, worker, token).items():
                assert found_in(folder, secret) | found_in(worker.home, secret) == {only}
                for mark in traces(secret):
                    assert not any(mark in text for text in [*said, *environments]), only
            assert len(bus.passed) > 10
            assert (worker.home / "lib" / "node.key").stat().st_mode & 0o777 == 0o600
            shutil.copytree(worker.home / "log", tmp_path / "log")
        assert "registered as" in (tmp_path / "log" / "master_link.log").read_text()


def test_a_refusal_stands_in_the_log_in_status_and_on_the_page() -> None:
    with short_folder() as folder, tls_master(folder) as master:
        token = str(master.api.order("/api/v1/tokens", {})["token"])
        wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
        said = "the master does not take this node: this master does not know this join token"
        port = free_port()
        with supervised(
            ("master_link", "watchdog", "web"),
            MASTER_NODE_URL=master.url,
            MASTER_JOIN_TOKEN=wrong,
            WEB_LISTEN=f"127.0.0.1:{port}",
        ) as worker:
            worker.next(LinkState, lambda s: s.phase is LinkPhase.WAITING and said in s.detail)
            until(lambda: said.encode() in page(port, "/events") or None, "the page says so")
            assert f"the link is down: {said}" in worker.logs()
            assert said in status(worker)["node"]["detail"]
        assert "is refused: this master does not know this join token" in master.log.read_text()
