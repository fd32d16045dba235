"""Records what Docker's own command line asks of the engine for `--gpus`, into data/gpus.json.

    python -m tests.executor.record_gpus unix:///var/run/docker.sock IMAGE

No card is needed: the engine takes the request at create, and says at start what it lacks.
"""

import http.client
import json
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "data" / "gpus.json"
CARDS = ("GPU-5a2f0c3e-7d41-4b0e-9a77-0123456789ab", "GPU-c0ffee00-1111-2222-3333-444455556666")
NAME = "hivemind-test-record"
GPUS = f'"device={",".join(CARDS)}"'
RECORDED = ("/containers/create", "/start")


class EngineConnection(http.client.HTTPConnection):
    """HTTP to the engine's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Recorder(socketserver.ThreadingUnixStreamServer):
    """Passes each call on, and keeps those of RECORDED."""

    daemon_threads = True

    def __init__(self, path: str, engine: str) -> None:
        super().__init__(path, Passing)
        self.engine = engine
        self.calls: list[dict[str, Any]] = []


class Passing(BaseHTTPRequestHandler):
    """One connection of the command line's."""

    server: Recorder
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = EngineConnection(self.server.engine)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if any(part in self.path for part in RECORDED):
            self._keep(body, answer.status, said)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_POST = do_DELETE = handle_any

    def _keep(self, body: bytes, status: int, said: bytes) -> None:
        self.server.calls.append({
            "call": f"{self.command} {self.path.partition('?')[0]}",
            "request": json.loads(body or b"null"),
            "status": status,
            "answer": json.loads(said or b"null"),
        })  # fmt: skip

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def record(engine: str, image: str) -> list[dict[str, Any]]:
    """What `docker run --gpus` calls, in its two steps."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/d.sock"
        with Recorder(path, engine) as recorder:
            threading.Thread(target=recorder.serve_forever, daemon=True).start()
            environment = {**os.environ, "DOCKER_HOST": f"unix://{path}"}
            create = ("create", "--name", NAME, "--gpus", GPUS, image, "true")
            for words in (create, ("start", NAME), ("rm", "-f", NAME)):
                run = ["docker", *words]
                subprocess.run(run, env=environment, capture_output=True, check=False, timeout=60)
            recorder.shutdown()
            return recorder.calls


def main(engine: str, image: str) -> None:
    calls = record(engine.removeprefix("unix://"), image)
    version = subprocess.run(["docker", "--version"], capture_output=True, text=True, check=True)
    words = f"docker create --gpus '{GPUS}'; docker start"
    found = {"command": words, "by": version.stdout.strip(), "calls": calls}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
