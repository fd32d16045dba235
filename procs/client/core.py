"""What the client decides: sizes, durations, exit codes, safe paths. Pure."""

import re
from typing import Any

OWN_FAILURE = 125  # as `docker run`: not the command's doing
NOT_STARTED = 127  # the command could not be started
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)i?b?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Malformed(ValueError):
    """An option's value cannot be read."""


def size_bytes(text: str) -> int:
    """512m, 2g, 1.5GiB or plain bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Malformed(f"{text!r} is no size: write 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def duration_s(text: str) -> float:
    """90, 90s, 10m, 1h30m or 2d."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not text.strip():
        raise Malformed(f"{text!r} is no duration: write 90s, 10m or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """KEY=VALUE, each key once."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Malformed(f"{option} {text!r}: write KEY=VALUE")
        if key in found:
            raise Malformed(f"{option} {key} is given twice")
        found[key] = value
    return found


def exit_code(task: dict[str, Any]) -> int:
    """What `hivemind run` exits with once a task has ended.

    The task's own code. Where it never ran: 127 if its command could not be started, else 125;
    125 also where it was ended from outside and yet says 0.
    """
    code = task["exit_code"]
    if code is None or code < 0:
        return NOT_STARTED if task.get("cause") == "start" else OWN_FAILURE
    if code == 0 and task["state"] != "succeeded":
        return OWN_FAILURE
    return int(code) & 0xFF


def summary(task: dict[str, Any]) -> str:
    """A task's end in one line."""
    parts = [f"{task['task_id']} {task['state'].replace('_', ' ')}"]
    if task["exit_code"] is not None and task["exit_code"] >= 0:
        parts.append(f"exit code {task['exit_code']}")
    if task["reward"] is not None:
        parts.append(f"reward {task['reward']}")
    line = ", ".join(parts)
    return f"{line}: {task['error']}" if task["error"] else line


def entry_parts(name: str) -> list[str]:
    """The parts of an archive's entry below the output directory; Malformed if it would leave."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Malformed(f"the output holds an entry that would leave its directory: {name!r}")
    return parts
