"""Where web listens for the command line, and how it is asked: HTTP over a unix socket.

The owner's wishes are web's alone to keep; who asks for one asks here.
"""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

ANSWER_S = 10.0
WRITE_HEADERS = {"Host": "worker", "X-HiveMind": "1", "Content-Type": "application/json"}


class NoAnswerError(Exception):
    """Nobody answers there; the text says why."""


class RefusedError(Exception):
    """The wish is not taken; the text is web's reason."""


def owner_socket(home: Path) -> Path:
    return home / "run" / "web.sock"


def ask_owner(home: Path, path: str, body: dict[str, str]) -> dict[str, Any]:
    """POST `body` to `path`; what web says of the owner's wishes then."""
    connection = _Connection(owner_socket(home))
    try:
        connection.request("POST", path, json.dumps(body), WRITE_HEADERS)
        answer = connection.getresponse()
        content = answer.read()
    except PermissionError as err:
        raise NoAnswerError(f"{owner_socket(home)} is for the worker's group and root") from err
    except (OSError, http.client.HTTPException) as err:
        raise NoAnswerError(f"no answer at {owner_socket(home)}: {err}") from err
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise RefusedError(content.decode(errors="replace").strip())
    owner: dict[str, Any] = json.loads(content)
    return owner


class _Connection(http.client.HTTPConnection):
    """To a file instead of a host."""

    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))
