"""A real image registry, behind a wire that a test can stall, cut or fill with an answer.

The registry listens on a unix socket; only the wire's own port lies in the engine's network
namespace, at a loopback address, which Docker lets be plain HTTP.
"""

import ctypes
import io
import os
import select
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker

from tests.system.engine.private import PrivateEngine

CLONE_NEWNET = 0x40000000
DEADLINE_S = 20.0
CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{net: unix, addr: {folder}/registry.sock}}
"""


def listen_in(namespace: str) -> socket.socket:
    """A listening socket in another network namespace: a thread enters it, and ends there."""
    made: list[socket.socket] = []

    def make() -> None:
        place = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(place, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", 0)))
        finally:
            os.close(place)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class Wire:
    """Every connection to the registry. What is set applies to what comes after."""

    def __init__(self, namespace: str, upstream: Path) -> None:
        self._listener = listen_in(namespace)
        self._upstream = str(upstream)
        self.port: int = self._listener.getsockname()[1]
        self.stall_after_bytes: int | None = None  # of an answer: then nothing more flows
        self.cut_after_bytes: int | None = None  # of an answer: then the connection is closed
        self.answer = b""  # said to every request, in the registry's place
        self.asked: list[bytes] = []  # by the engine, while an answer was given in its place
        self.stalled = threading.Event()
        self.was_cut = threading.Event()
        self._over, self._end = os.pipe()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def mend(self) -> None:
        self.stall_after_bytes = self.cut_after_bytes = None
        self.answer = b""
        self.stalled.clear()
        self.was_cut.clear()

    def close(self) -> None:
        os.close(self._end)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        os.close(self._over)
        self._listener.close()

    def _accept(self) -> None:
        while self._ready(self._listener) == [self._listener]:
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._relay, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _ready(self, *sources: socket.socket) -> list[socket.socket]:
        """Nothing when it is over."""
        descriptors = {source.fileno(): source for source in sources}
        ready, _, _ = select.select([*descriptors, self._over], [], [])
        return [] if self._over in ready else [descriptors[number] for number in ready]

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as registry, suppress(OSError):
            registry.connect(self._upstream)
            answered = 0
            while ready := self._ready(client, registry):
                if client in ready:
                    answered = 0
                    if not self._ask(client, registry):
                        return
                    continue
                data = registry.recv(65536)
                client.sendall(data)
                answered += len(data)
                if self.stall_after_bytes is not None and answered >= self.stall_after_bytes:
                    self._stall(client)
                if not data or self._is_cut(answered):
                    return

    def _ask(self, client: socket.socket, registry: socket.socket) -> bool:
        data = client.recv(65536)
        if self.answer and data:
            self.asked.append(data)
            client.sendall(self.answer)
            return False
        registry.sendall(data)
        return bool(data)

    def _stall(self, client: socket.socket) -> None:
        self.stalled.set()
        self._ready(client)

    def _is_cut(self, answered: int) -> bool:
        if self.cut_after_bytes is None or answered < self.cut_after_bytes:
            return False
        self.was_cut.set()
        return True


class Registry:
    """A registry with nothing in it, and an engine that pushes to it."""

    def __init__(self, engine: PrivateEngine, folder: Path) -> None:
        self._folder = folder
        config = folder / "config.yml"
        config.write_text(CONFIG.format(folder=folder))
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
        self._await(folder / "registry.sock")
        namespace = (engine.folder / "namespace").read_text().strip()
        self.wire = Wire(namespace, folder / "registry.sock")
        self.docker = docker.APIClient(base_url=engine.host, version="1.41")

    def name(self, repository: str) -> str:
        return f"127.0.0.1:{self.wire.port}/{repository}"

    def push(self, repository: str, tag: str, *layers: dict[str, bytes]) -> str:
        """An image of these layers, in the registry and not in the engine; its digest."""
        name = self.name(repository)
        if len(layers) == 1:
            self.docker.import_image_from_data(
                archive(layers[0]), repository=name, tag=tag, changes=['CMD ["/run"]']
            )
        else:
            self._build(f"{name}:{tag}", layers)
        digest = self._follow(self.docker.push(name, tag, stream=True, decode=True))
        self.docker.remove_image(f"{name}:{tag}")
        return digest

    def _build(self, name: str, layers: Iterable[dict[str, bytes]]) -> None:
        """Five times as slow."""
        context = {f"{n}.tar": archive(files) for n, files in enumerate(layers)}
        lines = ["FROM scratch", *(f"ADD {file} /" for file in context), 'CMD ["/run"]']
        context["Dockerfile"] = "\n".join(lines).encode()
        self._follow(
            self.docker.build(
                fileobj=io.BytesIO(archive(context)), custom_context=True, tag=name,
                decode=True, nocache=True, forcerm=True,
            )
        )  # fmt: skip

    def move(self, repository: str, source: str, target: str) -> None:
        """In the registry `target` becomes what `source` is; the engine's own tags stay."""
        repositories = self._folder / "data/docker/registry/v2/repositories"
        tags, link = repositories / repository / "_manifests/tags", "current/link"
        (tags / target / link).write_bytes((tags / source / link).read_bytes())

    @staticmethod
    def _follow(lines: Iterable[dict[str, Any]]) -> str:
        """Raises at an error; the digest that was said."""
        digest = ""
        for line in lines:
            assert "error" not in line, line
            digest = line.get("aux", {}).get("Digest", digest)
        return digest

    def close(self) -> None:
        self.docker.close()
        self.wire.close()
        self._process.terminate()
        self._process.wait(DEADLINE_S)

    def _await(self, path: Path) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
                probe.connect(str(path))
                return
            assert time.monotonic() < deadline_s, "the registry did not come up"
            assert self._process.poll() is None, "the registry ended"
            time.sleep(0.02)


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()
