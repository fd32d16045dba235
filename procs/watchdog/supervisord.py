"""The two calls to supervisord that the worker makes: what runs, and a KILL by name.

Restarting is supervisord's own. XML-RPC over its unix socket by hand, because
`supervisor.xmlrpc` costs this process 9 MB and `xmlrpc.client` 5; no call waits longer than
the beat can.
"""

import socket
import time
from xml.etree import ElementTree

from procs.watchdog.core import Program

CALL_S = 0.5  # a stopped supervisord must not stop our own beat
UNIX = "unix://"
STATES_WITH_PROCESS = ("STARTING", "RUNNING", "STOPPING")


class SupervisordError(Exception):
    """supervisord does not answer, or refuses."""


class Supervisord:
    """A door to the supervisord at `server_url`, as it gives it to its event listeners."""

    def __init__(self, server_url: str) -> None:
        if not server_url.startswith(UNIX):
            raise SupervisordError("supervisor.conf needs a [unix_http_server]")
        self.path = server_url.removeprefix(UNIX)

    def programs(self) -> list[Program]:
        rows = self._call("supervisor.getAllProcessInfo")
        if not isinstance(rows, list):
            raise SupervisordError(f"not a list of programs: {rows!r}")
        return [_program(row) for row in rows]

    def kill(self, program: Program) -> None:
        self._call("supervisor.signalProcess", program.full_name, "KILL")

    def _call(self, method: str, *arguments: str) -> object:
        body = encode_call(method, arguments)
        head = (
            f"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            answer = self._exchange(head.encode() + body)
        except OSError as err:
            raise SupervisordError(f"{method}: {err}") from err
        status, _, xml = answer.partition(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n", 1)[0]:
            raise SupervisordError(f"{method}: {status[:100]!r}")
        return decode_answer(xml)

    def _exchange(self, request: bytes) -> bytes:
        deadline_s = time.monotonic() + CALL_S
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(CALL_S)
            door.connect(self.path)
            door.sendall(request)
            parts: list[bytes] = []
            while part := door.recv(65536):
                parts.append(part)
                door.settimeout(max(0.001, deadline_s - time.monotonic()))
        return b"".join(parts)


def encode_call(method: str, arguments: tuple[str, ...]) -> bytes:
    escape = str.maketrans({"&": "&amp;", "<": "&lt;"})
    values = "".join(
        f"<param><value><string>{text.translate(escape)}</string></value></param>"
        for text in arguments
    )
    call = f"<methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>"
    return f"<?xml version='1.0'?>{call}".encode()


def decode_answer(xml: bytes) -> object:
    """The value in an answer; a fault is a SupervisordError."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as err:
        raise SupervisordError(f"not XML: {xml[:100]!r}") from err
    fault = root.find("fault/value")
    if fault is not None:
        raise SupervisordError(f"refused: {_value(fault)}")
    value = root.find("params/param/value")
    if value is None:
        raise SupervisordError(f"no value: {xml[:100]!r}")
    return _value(value)


def _value(element: ElementTree.Element) -> object:
    typed = next(iter(element), None)
    if typed is None:
        return element.text or ""
    if typed.tag == "array":
        return [_value(item) for item in typed.findall("data/value")]
    if typed.tag == "struct":
        members = typed.findall("member")
        return {m.findtext("name", ""): _value(m.findall("value")[0]) for m in members}
    text = typed.text or ""
    return int(text) if typed.tag in ("int", "i4", "boolean") else text


def _program(row: object) -> Program:
    if not isinstance(row, dict):
        raise SupervisordError(f"not a program: {row!r}")
    state = str(row["statename"])
    return Program(
        name=str(row["name"]),
        group=str(row["group"]),
        state=state,
        pid=int(row["pid"]) if state in STATES_WITH_PROCESS else 0,
        start_unix_s=float(row["start"]),
        stop_unix_s=float(row["stop"]),
        exit_status=int(row["exitstatus"]),
        spawn_error=str(row["spawnerr"]),
    )
