"""A wire between the executor and Docker on which a test does harm at a chosen call.

One request for each connection, so that a request can be told from the next. A trap springs once:
at its moment it calls the test's action, and the caller gets no answer.
"""

import re
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MOST_HEAD_BYTES = 65536
CHUNK_BYTES = 65536
HEAD_END = b"\r\n\r\n"


class Moment(StrEnum):
    """Where in a call."""

    BEFORE = "before it is sent"
    SENT = "after it is sent"
    ANSWERED = "after its answer came"


@dataclass
class Trap:
    """`call`: a pattern of "METHOD /path"; `passes`: the caller is answered after all."""

    call: str
    moment: Moment
    action: Callable[[], object] = lambda: None
    after_s: float = 0.0  # from the moment to the action: within the engine's work
    passes: bool = False
    taken: bool = False
    sprung: threading.Event = field(default_factory=threading.Event)


class EngineProxy:
    """Listens at `path`, speaks to the engine's socket at `engine`."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.host = f"unix://{path}"
        self.calls: list[str] = []
        self._engine = engine
        self._traps: list[Trap] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def set(self, trap: Trap) -> Trap:
        with self._lock:
            self._traps.append(trap)
        return trap

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.socket(socket.AF_UNIX) as engine:
            request, call = _read_request(client)
            self.calls.append(call)
            if self._springs(call, Moment.BEFORE):
                return
            engine.connect(str(self._engine))
            engine.sendall(request)
            if self._springs(call, Moment.SENT):
                return
            if self._waits_for_answer(call):
                answer = _read_to_end(engine)
                if not self._springs(call, Moment.ANSWERED):
                    client.sendall(answer)
                return
            self._pump(engine, client)

    def _springs(self, call: str, moment: Moment) -> bool:
        """Is the caller to get no answer?"""
        with self._lock:
            found = [t for t in self._traps if _is_for(t, call) and t.moment is moment]
            for trap in found[:1]:
                trap.taken = True
        for trap in found[:1]:
            select.select([], [], [], trap.after_s)
            trap.action()
            trap.sprung.set()
            return not trap.passes
        return False

    def _waits_for_answer(self, call: str) -> bool:
        with self._lock:
            return any(_is_for(t, call) and t.moment is Moment.ANSWERED for t in self._traps)

    def _pump(self, engine: socket.socket, client: socket.socket) -> None:
        """Whatever comes, until one of them ends."""
        while not self._ended.is_set():
            ready = select.select([engine, client], [], [], 0.1)[0]
            if engine in ready:
                data = engine.recv(CHUNK_BYTES)
                if not data:
                    return
                client.sendall(data)
            elif client in ready and not client.recv(1, socket.MSG_PEEK):
                return


def _is_for(trap: Trap, call: str) -> bool:
    return not trap.taken and re.match(trap.call, call) is not None


def _read_request(client: socket.socket) -> tuple[bytes, str]:
    """The whole request, with a word that asks for the connection's end; and what it calls."""
    data = b""
    while HEAD_END not in data:
        more = client.recv(CHUNK_BYTES)
        if not more or len(data) > MOST_HEAD_BYTES:
            raise ConnectionError("no request")
        data += more
    head, _, body = data.partition(HEAD_END)
    lines = [x for x in head.split(b"\r\n") if not x.lower().startswith(b"connection:")]
    length = next((int(x[15:]) for x in lines if x.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += client.recv(CHUNK_BYTES)
    method, target, _ = lines[0].decode().split(" ")
    call = f"{method} {re.sub(r'^/v[0-9.]+', '', target)}"
    return b"\r\n".join([*lines, b"Connection: close"]) + HEAD_END + body, call


def _read_to_end(engine: socket.socket) -> bytes:
    data = b""
    while more := engine.recv(CHUNK_BYTES):
        data += more
    return data
