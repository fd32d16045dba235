"""Supervisor's event listener protocol, over its two descriptors.

An event is only a bell here: what is true, supervisord says when asked. The one writer of
standard output: a stray line there would end the events.
"""

import os
import re

STDIN, STDOUT, STDERR = 0, 1, 2
READY = b"READY\n"
ANSWER = b"RESULT 2\nOK" + READY
CHUNK = 64 * 1024
LENGTH = re.compile(rb"\blen:(\d+)")


class EventsEnded(Exception):
    """supervisord closed the pipe, or what came is not its protocol."""


def take_stdout() -> int:
    """Keep standard output for the protocol alone: print() goes to standard error from here."""
    answers = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    return answers


class Bell:
    """Answers each event; says how many came."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._buffer = b""
        os.write(answers, READY)

    def fileno(self) -> int:
        return STDIN

    def take(self) -> int:
        """Call when readable."""
        chunk = os.read(STDIN, CHUNK)
        if not chunk:
            raise EventsEnded("supervisord closed the events")
        count, self._buffer = split(self._buffer + chunk)
        for _ in range(count):
            os.write(self._answers, ANSWER)
        return count


def split(buffer: bytes) -> tuple[int, bytes]:
    """How many whole events `buffer` holds, and what follows them."""
    count = 0
    while True:
        header, newline, rest = buffer.partition(b"\n")
        if not newline:
            return count, buffer
        found = LENGTH.search(header)
        if not found:
            raise EventsEnded(f"not an event: {header[:100]!r}")
        if len(rest) < int(found[1]):
            return count, buffer
        buffer = rest[int(found[1]) :]
        count += 1
