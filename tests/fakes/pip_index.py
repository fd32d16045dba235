"""A package index over HTTPS with a password, out in the internet as an engine's containers see it.

It has a network namespace of its own, behind a router, as what is near is closed to them. Its
wheels are put together by hand; a test may hold its answers back.
"""

import base64
import ctypes
import io
import os
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER, PASSWORD = "reader", "pa55-word%21-of-the-index"
PASSWORD_ITSELF = "pa55-word!-of-the-index"
HELD_S = 60.0


ADDRESS = "203.0.113.77"
NEAR, FAR = "10.253.77.1", "10.253.77.2"  # the two ends of the line
ROUTES = f"""
ip netns add {{space}}
ip link add {{line}} type veth peer name eth0 netns /run/netns/{{space}}
ip addr add {NEAR}/30 dev {{line}}
ip link set {{line}} up
ip netns exec {{space}} ip link set lo up
ip netns exec {{space}} ip addr add {FAR}/30 dev eth0
ip netns exec {{space}} ip addr add {ADDRESS}/32 dev lo
ip netns exec {{space}} ip link set eth0 up
ip route add {ADDRESS}/32 via {FAR}
"""
BACKEND = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BUILD = """
def build_wheel(folder, config_settings=None, metadata_directory=None):
    import os, zipfile
    info, wheel = "{name}-1.dist-info", "{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as archive:
        archive.writestr("{name}.py", said)
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n")
        archive.writestr(
            info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        )
        archive.writestr(info + "/RECORD", "")
    return wheel
"""


class PipIndex:
    """`namespace`: the engine's."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self._space, self._line = f"hmi{os.getpid()}", f"hmi{os.getpid()}"
        _inside(namespace, "sh", "-ec", ROUTES.format(space=self._space, line=self._line))
        self._packages: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.cert = folder / "index.pem"
        key = folder / "index.key"
        _make_certificate(key, self.cert, ADDRESS)
        self._server = _in_namespace(self._space, lambda: _Server(("0.0.0.0", 0), _Handler))
        self._server.index = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        self.url = f"https://{USER}:{PASSWORD}@{ADDRESS}:{self.port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        subprocess.run(("ip", "netns", "del", self._space), check=True)

    def put(self, name: str, version: str, files: dict[str, bytes], requires: str = "") -> None:
        """A wheel."""
        wheel = f"{name}-{version}-py3-none-any.whl"
        self._packages.setdefault(name, {})[wheel] = _wheel(name, version, files, requires)

    def put_source(self, name: str, code: str) -> None:
        """A source distribution: pip runs `code`, whose `said` becomes the package's content."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(f"{name}-1/pyproject.toml", BACKEND)
            archive.writestr(f"{name}-1/backend.py", code + BUILD.format(name=name))
            archive.writestr(f"{name}-1/PKG-INFO", f"Name: {name}\nVersion: 1\n")
        self._packages.setdefault(name, {})[f"{name}-1.zip"] = content.getvalue()

    def downloads(self, name: str) -> int:
        return sum(path.startswith(f"/files/{name}-") for path in self.asked)

    def answer(self, path: str) -> bytes | None:
        """The content at a path; None: 404."""
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if len(parts) == 2 and parts[0] == "simple" and parts[1] in self._packages:
            files = self._packages[parts[1]]
            return "".join(f'<a href="/files/{name}">{name}</a>\n' for name in files).encode()
        if len(parts) == 2 and parts[0] == "files":
            self.go.wait(HELD_S)
            for files in self._packages.values():
                if parts[1] in files:
                    return files[parts[1]]
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    index: PipIndex

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away: a test killed it."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        expected = base64.b64encode(f"{USER}:{PASSWORD_ITSELF}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.index.answer(self.path)
        self.send_response(404 if content is None else 200)
        is_page = self.path.startswith("/simple")
        self.send_header("Content-Type", "text/html" if is_page else "application/zip")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args: Any) -> None:
        pass


def _wheel(name: str, version: str, files: dict[str, bytes], requires: str) -> bytes:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def _make_certificate(key: Path, cert: Path, address: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=index of the tests",
         "-addext", f"subjectAltName=IP:{address}"],
        check=True, capture_output=True,
    )  # fmt: skip


def _inside(namespace: str, *command: str) -> None:
    subprocess.run(("nsenter", f"--net=/run/netns/{namespace}", *command), check=True)


def _in_namespace(namespace: str, make: Callable[[], _Server]) -> _Server:
    """A socket stays in the namespace in which it was made; only this thread goes there."""
    made: list[_Server] = []
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(descriptor, 0):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)
        made.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]
