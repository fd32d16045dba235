"""How a message reads on one line, for people and for programs. Pure: no clock, no sockets."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shared.messages import Message
from shared.topics import TOPICS

LONGEST_LINE = 500  # characters; --json has everything
MOST_ITEMS = 4  # of a list, in the readable form
ENVELOPE = ("kind", "at_s", "synced")
UNPRINTABLE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))}  # hostile to a terminal


def unknown_topics(wanted: Sequence[str]) -> list[str]:
    """Those that no topic begins with: subscriptions match by prefix."""
    return [word for word in wanted if not any(topic.startswith(word) for topic in TOPICS)]


def readable_line(source: str, message: Message, at_unix_s: float) -> str:
    """Time, topic, source, and the fields that say something."""
    milliseconds = int(at_unix_s * 1000) % 1000
    clock = f"{datetime.fromtimestamp(at_unix_s):%H:%M:%S}.{milliseconds:03}"
    mark = "" if message.synced else " UNSYNCED"
    line = f"{clock} {message.topic:<13} {source:<12}{mark} {_fields(_said(message))}".rstrip()
    line = line.translate(UNPRINTABLE)
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


def json_line(source: str, message: Message, at_unix_s: float) -> str:
    """One JSON object; control characters are escaped by JSON itself."""
    fields = msgspec.to_builtins(message)
    whole = {"topic": message.topic, "source": source, "at_unix_s": round(at_unix_s, 3)} | fields
    return msgspec.json.encode(whole).decode()


def _said(message: Message) -> dict[str, Any]:
    fields = msgspec.to_builtins(message)
    return {name: value for name, value in fields.items() if name not in ENVELOPE}


def _fields(fields: Mapping[str, Any]) -> str:
    """`name=value` of each field that holds anything."""
    return " ".join(
        f"{name}={_brief(name, value)}"
        for name, value in fields.items()
        if value not in (None, "", (), [], {}) and _brief(name, value) != "{}"
    )


def _brief(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + _fields(value) + "}"
    if isinstance(value, list | tuple):
        return _list(name, value)
    if isinstance(value, float):
        return f"{value:.3f}" if name.endswith("_unix_s") else f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f'"{text}"' if " " in text else text


def _list(name: str, values: Sequence[Any]) -> str:
    shown = [_brief(name, value) for value in values[:MOST_ITEMS]]
    more = len(values) - len(shown)
    return "[" + ", ".join(shown) + (f", … {more} more" if more else "") + "]"
