"""Sees from outside the worker how often each task's command began: what a second run would wipe,
the log and the output, is looked at while the task is there, and Docker tells each end.

The command says a word of its own first (`SAYS`): another run would have another word.
"""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from shared.taskdir import LOG, TaskKey
from shared.tasklog import LogReader

WORD_BYTES = 37  # a UUID and a newline
SAYS = "w=$(cat /proc/sys/kernel/random/uuid); echo $w; echo $w >>/output/ran; "
NEVER_BEGAN = "125"  # a keeper that found no claim
LISTEN_EACH_S = 0.5  # the engine remembers its last 256 events


class Witness:
    """`look` at each task often; `begun` when it is over."""

    def __init__(self, engine: Path, home: Path) -> None:
        self._engine = engine
        self._tasks = home / "tasks"
        self._words: dict[TaskKey, set[bytes]] = {}
        self._ends: dict[TaskKey, set[int]] = {}
        self._filters = json.dumps({"label": [f"hivemind.home={home}"], "event": ["die"]})
        self._since_s = self._due_s = time.time()

    def look(self, key: TaskKey) -> bytes:
        """The word that its log begins with now; empty: none yet."""
        if time.time() >= self._due_s:
            self.listen()
        word = first_word(self._tasks / key.directory / LOG)
        if len(word) == WORD_BYTES:
            self._words.setdefault(key, set()).add(word)
        return word

    def begun(self, key: TaskKey) -> int:
        """How often its command began, as far as anyone saw."""
        self.listen()
        return max(len(self._ends.get(key, ())), len(self._words.get(key, ())))

    def listen(self) -> None:
        """Take Docker's events; it forgets them when it dies."""
        now_s = time.time()
        self._due_s = now_s + LISTEN_EACH_S
        for event in self._events(f"{self._since_s:.9f}", f"{now_s:.9f}"):
            self._note(event["Actor"]["Attributes"], event["timeNano"])
        self._since_s = now_s - LISTEN_EACH_S  # some come late

    def _events(self, since: str, until: str) -> Iterator[dict[str, Any]]:
        query = urlencode({"since": since, "until": until, "filters": self._filters})
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(str(self._engine))
                engine.sendall(f"GET /events?{query} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                while more := engine.recv(65536):
                    answer += more
        except OSError:
            return
        yield from map(json.loads, answer.partition(b"\r\n\r\n")[2].splitlines())

    def _note(self, attributes: dict[str, str], at_ns: int) -> None:
        key = TaskKey(attributes["hivemind.task"], int(attributes["hivemind.attempt"]))
        if attributes["exitCode"] != NEVER_BEGAN:
            self._ends.setdefault(key, set()).add(at_ns)


def first_word(log: Path) -> bytes:
    reader = LogReader(log)
    try:
        records = reader.read(1)
        return records[0].data[:WORD_BYTES] if records else b""
    finally:
        reader.close()
